"""Equations as text: random models against SciPy, random texts, mistakes and where they are found."""

import re
import warnings
from functools import cache

import numpy as np
import pytest
import torch
from scipy_reference import scipy_states

from neuralpk import part
from neuralpk.cohort import Dose
from neuralpk.dynamics import Dynamics, EquationError, Equations, library
from neuralpk.dynamics.equation_text import FUNCTIONS
from neuralpk.dynamics.expression import MOST_NESTED
from neuralpk.solve import RungeKutta, solve
from neuralpk.solve.field_translation import translated

FINE = RungeKutta(rtol=1e-10, atol=1e-12, max_evaluations=10**6)
OF_NUMPY = {
    name: getattr(np, name) for name in ("exp", "log", "log10", "log1p", "expm1", "sqrt", "abs", "tanh", "sin", "cos")
}
OF_NUMPY |= {
    "pow": np.power,
    "min": min,
    "max": max,
    "hill": lambda x, half, n: x**n / (half**n + x**n) if x > 0 else 0.0,
    "where": lambda condition, yes, no: yes if condition else no,
}


def start(model):
    values = [*model.guess(None).values(), *(1.0 if value is None else value for value in model.covariates.values())]
    return torch.tensor([values], dtype=torch.float64)


# ---- random models


class RandomModel:
    """A text of random flows and bounded inputs, in which every state is lost at some rate, and its lines by hand."""

    def __init__(self, seed):
        self.random = np.random.default_rng(seed)
        self.parameters, self.variables = {}, {}
        self.states = [f"x{k}" for k in range(1, self.random.integers(1, 5) + 1)]
        loss = {state: [f"-{self.rate()}*{state}"] for state in self.states}
        for _ in range(self.random.integers(0, 4)):
            source, sink = self.random.choice(self.states, 2)
            flow = self.flow(source)
            loss[source].append(f"- {flow}")
            loss[sink].append(f"+ {flow}")
        for state in self.states:
            if self.random.random() < 0.5:
                loss[state].append(f"+ {self.rate()}*{self.factor()}")
        self.slopes = {state: " ".join(terms) for state, terms in loss.items()}
        self.initial = {state: self.rate() for state in self.states if self.random.random() < 0.4}
        lines = " ".join([*self.slopes.values(), *self.variables.values(), *self.initial.values()])
        used = set(re.findall(r"\w+", lines))
        self.parameters = {name: value for name, value in self.parameters.items() if name in used}

    def rate(self):
        name = f"K{len(self.parameters) + 1}"
        self.parameters[name] = round(float(self.random.uniform(0.1, 1.5)), 3)
        return name

    def named(self, expression):
        """The expression, or a variable that has its value."""
        if self.random.random() < 0.3:
            name = f"V{len(self.variables) + 1}"
            self.variables[name] = expression
            return name
        return f"({expression})"

    def flow(self, source):
        kind = self.random.integers(3)
        if kind == 0:
            return f"{self.rate()}*{source}"
        if kind == 1:
            return self.named(f"{self.rate()}*{source}/({self.rate()} + {source})")
        return f"{self.rate()}*{source}*{self.factor()}"

    def factor(self):
        """A number between 0 and 2 that depends on a state or on the time."""
        x, a, b = self.random.choice(self.states), self.rate(), self.rate()
        kinds = [
            f"1 - 0.8*hill({x}, {a}, 1 + {b})",
            f"exp(-{a}*{x}^2)",
            f"1 + 0.5*sin({a}*t + {b})",
            f"1 + tanh({x} - {a})",
            f"log1p({x}^2)/(1 + {x}^2)",
            f"1/sqrt(1 + {a}*{x} ** 2)",
            f"-expm1(-{a}*{x}*{x})",
            f"where({a} > {b} and not ({a} == 1), cos({x})^2, 2^(-{x}*{x}))",
            f"min({a}/{b}, 1)*max(0, {b})/(1 + pow({x}, 2))",
        ]
        return self.named(self.random.choice(kinds))

    @property
    def text(self):
        slopes = [
            f"{state}' = {slope}" if self.random.random() < 0.5 else f"d/dt({state}) = {slope}"
            for state, slope in self.slopes.items()
        ]
        lines = [
            "parameters: " + ", ".join(f"{name} = {value}" for name, value in self.parameters.items()),
            *self.random.permutation([*slopes, *(f"{name} = {value}" for name, value in self.variables.items())]),
            *(f"{state}(0) = {value}" for state, value in self.initial.items()),
            f"states: {', '.join(self.states)}",
            f"outputs: {', '.join(self.states)}",
        ]
        return "\n".join(lines)

    def by_hand(self):
        """dy/dt from t and y, by Python itself."""
        of = {name: value.replace("^", "**") for name, value in (self.slopes | self.variables).items()}
        code = {name: compile(value, name, "eval") for name, value in of.items()}

        def slope(t, y):
            known = OF_NUMPY | self.parameters | dict(zip(self.states, y, strict=True)) | {"t": t}
            for name in self.variables:  # an earlier one never reads a later one
                known[name] = eval(code[name], {}, known)
            return np.array([eval(code[name], {}, known) for name in self.states])

        return slope

    def doses(self):
        where = [int(k) for k in self.random.integers(1, len(self.states) + 1, 3)]
        return [
            Dose(0.0, 3.0, where[0]),
            Dose(1.5, 2.0, where[1], duration=2.0),
            Dose(5.0, 1.0, where[2], interval=1.5, additional=2),
        ]


def check_random_model(seed):
    model = RandomModel(seed)
    dynamics = Equations(model.text).double()
    doses, times = model.doses(), [0.4, 1.1, 2.3, 4.2, 6.1, 7.7, 9.4, 12.3]
    y0 = [model.parameters.get(model.initial.get(state), 0.0) for state in model.states]
    expected = scipy_states(model.by_hand(), y0, doses, times)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin = torch.zeros(1, dtype=torch.float64)
        found = solve(
            dynamics, start(dynamics), torch.tensor([times], dtype=torch.float64), [doses], start=begin, engine=FINE
        )
    found.check()
    error = np.abs(found.states[0].numpy() - expected) / (np.abs(expected) + 1e-5 * np.abs(expected).max(0) + 1e-12)
    assert error.max() < 1e-7, model.text
    return error.max()


@pytest.mark.parametrize("part", range(4))
def test_random_models_have_the_states_of_scipy(part):
    for seed in range(10 * part, 10 * part + 10):
        check_random_model(seed)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(16))
def test_many_random_models_have_the_states_of_scipy(part):
    for seed in range(40 + 10 * part, 50 + 10 * part):
        check_random_model(seed)


# ---- random texts

CHARACTERS = "abKx019.eE+-*/^()<>=!,:~'# \t\n_tF&%é٣²\u2028\x0c"
TOKENS = [
    *FUNCTIONS, "parameters:", "states:", "outputs:", "lag", "F", "and", "or", "not", "in", "t", "inf", "x", "y", "K",
    "x'", "d/dt(x)", "x(0)", "=", "+", "-", "*", "/", "^", "**", "(", ")", ",", "<", ">=", "==", "0", "1", "2.5",
    "1e400", "covariates:", "WT", "~", "proportional", "combined(a = 1)", "lloq", "\n", "units:",
    "[mg/L]", "[1/h]", "[", "[L^2", "[1]",
]  # fmt: skip


WITH_UNITS = """units: t [h], C [mg/L]
    parameters: KA = 1 [1/h], CL = 5 [L/h] in (0, 20), V = 50 [L], KIN = 10 [%/h], KOUT = 0.1, IC50 = 0.5 [mg/L]
    covariates: WT = 70 [kg]
    depot' = -KA*depot
    central' = KA*depot - CL/V*central*(WT/70 [kg])^0.75
    response' = KIN*(1 - C/(IC50 + C)) - KOUT*response
    response(0) = KIN/KOUT
    C = central/V
    outputs: C ~ proportional, response"""


@cache
def texts():
    return [*(Equations(model=name).text for name in library()), *[WITH_UNITS] * 5]


def edited(random):
    """A model of the library with one to three mistakes of the hand."""
    text = random.choice(texts())
    pieces = re.findall(r"\w+|\s+|[^\w\s]", text) if random.random() < 0.5 else list(text)
    for _ in range(random.integers(1, 4)):
        at = int(random.integers(len(pieces)))
        new = random.choice([*CHARACTERS, *TOKENS, *pieces])
        # delete, insert, replace
        pieces[at : at + int(random.choice([0, 1, 1]))] = [] if random.random() < 0.33 else [new]
    return "".join(pieces)


def soup(random):
    """Tokens in any order, most of them after a beginning that makes sense."""
    tokens = " ".join(random.choice(TOKENS, random.integers(1, 25)))
    head = random.choice(
        [
            "",
            "parameters: K = 1\nx' = ",
            "x' = -x\noutputs: x ~ ",
            "x' = K*x\noutputs: x\n",
            "outputs: x\nparameters: K = 2\nx' = -K*x + ",
        ]
    )
    return head + tokens


def check_text(text):
    """Whether it is a model; anything else but a mistake with its place fails."""
    try:
        model = Equations(text).double()
        theta = start(model)
        y = model.initial_state(theta)
        slope = model(torch.zeros(1, dtype=torch.float64), y, theta)
        seen = model.observe(y, theta)
        assert slope.shape == y.shape == (1, len(model.states))
        assert seen.shape[0] == 1 and seen.shape[1] > max(model.endpoints)
        assert slope.dtype == y.dtype == seen.dtype == torch.float64
        for values in (model.lag(theta), model.bioavailability(theta)):
            assert values is None or values.shape == y.shape
        assert all(value.shape == (1,) for value in model.derived(theta).values())
    except EquationError as mistake:
        lines = text.splitlines() or [""]
        assert 1 <= mistake.line <= len(lines)
        assert 1 <= mistake.column <= len(lines[mistake.line - 1]) + 1
        return False
    return True


def check_texts(seed, number):
    random = np.random.default_rng(seed)
    models = 0
    for _ in range(number // 2):
        for make in (edited, soup):
            text = make(random)
            try:
                models += check_text(text)
            except BaseException:
                print(repr(text))
                raise
    assert 0.02 * number < models < 0.9 * number  # of both kinds


def test_a_random_text_is_a_model_or_a_mistake_with_its_place():
    check_texts(0, 2000)


@pytest.mark.slow
def test_many_random_texts_are_models_or_mistakes_with_their_place():
    check_texts(1, 8000)


# ---- mistakes

GOOD = "parameters: K = 1, V = 2\nx' = -K*x\nC = x/V\noutputs: C"
MISTAKES = {
    "unknown name": ("parameters: K = 1\nx' = -K*x + z\noutputs: x", "'z' is not known", 2, 13),
    "unknown name, nearly known": ("parameters: KA = 1\nx' = -Ka*x\noutputs: x", "did you mean 'KA'", 2, 7),
    "state without an equation": ("states: x, y\nx' = -x\noutputs: x", "y has no equation", 1, 12),
    "state that is not listed": ("states: x\nx' = -x\ny' = -y\noutputs: x", "y is not in the list", 3, 1),
    "wrong number of arguments": ("x' = -x*max(x)\noutputs: x", r"takes 2 argument\(s\), not 1", 1, 9),
    "undefined function": ("x' = -x + expp(x)\noutputs: x", "did you mean 'exp'", 1, 11),
    "function without arguments": ("x' = -x + exp\noutputs: x", r"write exp\(…\)", 1, 11),
    "circle of variables": ("x' = a\na = b\nb = a + x\noutputs: x", "a depends on itself: a <- b <- a", 3, 5),
    "unused parameter": ("parameters: K = 1, Z = 2\nx' = -K*x\noutputs: x", "Z is not used", 1, 20),
    "no outputs": ("x' = -x\n\n# end", "which value is measured", 1, 8),
    "no equation": ("parameters: K = 1", "at least one equation", 1, 18),
    "nothing": ("", "at least one equation", 1, 1),
    "unknown output": ("x' = -x\noutputs: x, Cc", "no state or variable 'Cc'", 2, 13),
    "output of the time": ("x' = -x\nC = x*exp(-t)\noutputs: C", "cannot depend on t", 3, 10),
    "unknown error": ("x' = -x\noutputs: x ~ proportionl", "did you mean 'proportional'.*there are additive", 2, 14),
    "error that is missing": ("x' = -x\noutputs: x ~", "name of a residual error is expected", 2, 13),
    "unknown number of an error": ("x' = -x\noutputs: x ~ additive(b = 1)", "additive error has no 'b'", 2, 23),
    "number of an error twice": ("x' = -x\noutputs: x ~ additive(a = 1, a = 2)", "a is given twice", 2, 30),
    "negative number of an error": ("x' = -x\noutputs: x ~ additive(a = -1)", "a must be a positive", 2, 27),
    "error left open": ("x' = -x\noutputs: x ~ additive(a = 1", r"'\)' is expected here", 2, 28),
    "limit that is no number": ("x' = -x\noutputs: x ~ additive lloq b", "a number is expected", 2, 28),
    "infinite limit": ("x' = -x\noutputs: x ~ additive lloq inf", "limit of quantification is a number", 2, 28),
    "limit below 0": ("x' = -x\noutputs: x ~ log_normal lloq -1", "above 0 where the values are log", 2, 30),
    "unused covariate": ("covariates: WT\nx' = -x\noutputs: x", "covariate WT is not used", 1, 13),
    "covariate twice": ("covariates: WT, WT\nx' = -WT*x\noutputs: x", "defined already", 1, 17),
    "covariate that is a state": ("covariates: x\nx' = -x\noutputs: x", "defined already, in line 1", 2, 1),
    "covariate without its value": ("covariates: WT =\nx' = -WT*x\noutputs: x", "a number is expected", 1, 17),
    "infinite covariate": ("covariates: WT = inf\nx' = -WT*x\noutputs: x", "is a finite number", 1, 18),
    "output twice": ("x' = -x\noutputs: x, x", "an output already", 2, 13),
    "variable twice": ("x' = -x\nC = x\nC = 2*x\noutputs: C", "defined already, in line 2", 3, 1),
    "state twice": ("x' = -x\nd/dt(x) = x\noutputs: x", "defined already, in line 1", 2, 6),
    "parameter as a state": ("parameters: K = 1\nK' = -K\noutputs: K", "defined already", 2, 1),
    "parameter twice": ("parameters: K = 1, K = 2\nx' = -K*x\noutputs: x", "defined already", 1, 20),
    "lag twice": ("x' = -x\nlag(x) = 1\nalag(x) = 2\noutputs: x", "given already, in line 2", 3, 6),
    "half an interval": ("parameters: K = 1 in (0.5, inf)\nx' = -K*x\noutputs: x", "has two finite ends", 1, 17),
    "start outside": ("parameters: K = 1.5 in (0, 1)\nx' = -K*x\noutputs: x", "not between 0 and 1", 1, 17),
    "negative start": ("parameters: K = -1\nx' = -K*x\noutputs: x", "not between 0 and inf", 1, 17),
    "interval the wrong way": ("parameters: K = 0.5 in (1, 0)\nx' = -K*x\noutputs: x", "not between 1 and 0", 1, 17),
    "start that is no number": ("parameters: K = z\nx' = -K*x\noutputs: x", "a number is expected", 1, 17),
    "reserved name": ("t = 2\nx' = -x\noutputs: x", "'t' has a meaning of its own", 1, 1),
    "reserved state": ("exp' = -exp\noutputs: exp", "'exp' has a meaning|write exp", 1, 1),
    "lag of no state": ("x' = -x\nlag(y) = 2\noutputs: x", "no state 'y'", 2, 5),
    "initial value of no state": ("x' = -x\nxx(0) = 2\noutputs: x", "no state 'xx'; did you mean 'x'", 2, 1),
    "initial value at another time": ("x' = -x\nx(1) = 2\noutputs: x", r"written x\(0\)", 2, 3),
    "lag that changes": ("x' = -x\nlag(x) = 2*x\noutputs: x", "x changes with time", 2, 12),
    "bioavailability that changes": ("x' = -x\nF(x) = exp(-t)\noutputs: x", "t changes with time", 2, 13),
    "parenthesis left open": ("x' = -(x + 1\noutputs: x", r"'\)' is expected here, and the line ends", 1, 13),
    "operator at the end": ("x' = -x *\noutputs: x", "is expected here, and the line ends", 1, 10),
    "two names in a row": ("x' = -x x\noutputs: x", "an operator or the end of the line", 1, 9),
    "two comparisons": ("x' = where(0 < x < 1, x, -x)\noutputs: x", "join them by 'and'", 1, 18),
    "character without a meaning": ("x' = -x\noutputs: x ; y", "the character ';'", 2, 12),
    "no left side": ("= 3\nx' = -x\noutputs: x", "the name of a state or a variable", 1, 1),
    "nested too deeply": (f"x' = {'-' * 5000}x\noutputs: x", "too many operations", 1, 1),
    "parentheses too deep": (f"x' = {'(' * 5000}x{')' * 5000}\noutputs: x", "too many operations", 1, 1),
    "too many terms": (f"x' = x{' - x' * MOST_NESTED}\noutputs: x", "too many operations", 1, 4 + 4 * MOST_NESTED),
}  # fmt: skip


def test_the_text_without_a_mistake_is_a_model():
    assert check_text(GOOD)


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_named_with_its_place(kind):
    text, message, line, column = MISTAKES[kind]
    with pytest.raises(EquationError, match=message) as mistake:
        Equations(text)
    assert (mistake.value.line, mistake.value.column) == (line, column)
    assert f"line {line}, column {column}" in str(mistake.value)


def test_a_mistake_of_the_arithmetic_is_named_with_its_place():
    model = Equations("parameters: K = 1\nx' = -K*x + log(0)\noutputs: x")
    with pytest.raises(EquationError, match="line 2, column 13"):
        model(torch.zeros(1), torch.zeros(1, 1), torch.ones(1, 1))


def test_a_long_chain_of_variables_is_read_at_once():
    chain = [f"a{k} = a{k - 1}*a{k - 1}" for k in range(1, 300)]
    model = Equations("\n".join(["x' = -a299", "a0 = x", *chain, "outputs: a299"]))
    assert model.endpoints == (0,)
    backwards = [f"a{k} = a{k + 1}" for k in range(3000)]
    with pytest.raises(EquationError, match="chain"):
        Equations("\n".join(["x' = -a0", *backwards, "a3000 = x", "outputs: a0"]))


# ---- what a text means


@pytest.mark.parametrize(
    ("expression", "value"),
    {
        "(x < 1) + (x < 2)": 1.0,
        "(x < 1) - (x < 2)": -1.0,
        "-(x > 1)": -1.0,
        "exp(x > 1)": np.e,
        "not x": 0.0,
        "x and 0 or 1 == 1": 1.0,
        "min(x > 1, 0.5)": 0.5,
        "where(x > 1, 0.1, 0.2)": 0.1,
        "where(x > 1 and not x == 1.5, 1, 2)": 2.0,
        "-x^2": -2.25,
        "x^-2^2": 1.5**-4,
        "2 - 3 - x": -2.5,
        "8/2/2*x": 3.0,
        "hill(x, 2, K)": 1.5**1.25 / (2**1.25 + 1.5**1.25),
        "hill(-x, 2, K)": 0.0,
        "hill(3, 2, 2)*x": 1.5 * 9 / 13,
        "max(x, x)": 1.5,
        "pow(2, x)": 2**1.5,
        "1e-1 + .5 + 2.": 2.6,
    }.items(),
)
def test_the_value_of_an_expression_in_torch_and_compiled(expression, value):
    model = Equations(f"parameters: K = 1.25\nx' = {expression}\nx(0) = 1.5 + 0*K\noutputs: x").double()
    theta = start(model)
    y = model.initial_state(theta)
    assert model(torch.zeros(1, dtype=torch.float64), y, theta).item() == pytest.approx(value, rel=1e-14)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = translated(model, y, theta[:, None]).code
    slope, *_ = code.evaluate(y[0].numpy(), theta[0].numpy(), np.zeros(0), np.ones(1))
    assert slope[0] == pytest.approx(value, rel=1e-14)


class Truths(Dynamics):
    """Truths as numbers, in torch."""

    states, parameter_names = ("x",), ("K",)

    def forward(self, t, y, theta):
        return y.bool().to(y.dtype) * theta - (y > 2.0).to(y.dtype)


def test_a_truth_is_0_or_1_in_compiled_code():
    y, theta = torch.full((1, 1), 3.0).double(), torch.full((1, 1), 0.5).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        code = translated(Truths(), y, theta[:, None]).code
    assert code.evaluate(y[0].numpy(), theta[0].numpy(), np.zeros(0), np.ones(1))[0].tolist() == [-0.5]


class Kinks(Dynamics):
    """Functions at the places where they have a kink."""

    states, parameter_names = ("a", "b", "c", "d", "e"), ("K",)

    def forward(self, t, y, theta):
        a, b, c, d, e = y.unbind(-1)
        k = theta[:, 0]
        kinks = [torch.maximum(a, k), torch.minimum(k, b), torch.relu(c), d.clamp(min=0.0), e.abs()]
        return torch.stack(kinks, dim=-1)


def test_compiled_derivatives_at_a_kink_are_those_of_torch():
    y = torch.tensor([[0.5, 0.5, 0.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    theta = torch.full((1, 1), 0.5, dtype=torch.float64, requires_grad=True)
    slope = Kinks()(y[:, 0], y, theta)
    expected = torch.autograd.grad(slope.sum(), (y, theta))
    code = translated(Kinks(), y, theta[:, None]).code
    found = code.evaluate(y[0].detach().numpy(), theta[0].detach().numpy(), np.zeros(0), np.ones(5))
    assert found[0].tolist() == slope[0].tolist()
    assert [found[1].tolist(), found[2].tolist()] == [each[0].tolist() for each in expected]
    # what is no number stays none
    lost = code.evaluate(np.full(5, np.nan), np.full(1, 0.5), np.zeros(0), np.ones(5))
    assert np.isnan(lost[0]).all()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0, 12.0])
def test_hill_and_its_derivatives_are_numbers_for_any_concentration(gamma):
    for kind in (torch.float32, torch.float64):
        x = torch.tensor([-1e-9, 0.0, 1e-320, 1e-40, 1e-12, 1.0, 2.0, 1e30], dtype=kind, requires_grad=True)
        theta = torch.tensor([2.0, gamma], dtype=kind, requires_grad=True)
        model = Equations("parameters: EC50 = 1, GAMMA = 1\nx' = hill(x, EC50, GAMMA)\noutputs: x")
        found = model(x, x[:, None], theta.expand(len(x), 2))[:, 0]
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(found.sum(), (x, theta), retain_graph=True))
        ratio = np.clip(x.detach().double().numpy() / 2.0, 1e-300, 1e20) ** gamma
        np.testing.assert_allclose(found.detach(), ratio / (1.0 + ratio), rtol=1e-5, atol=1e-18)


def test_states_are_numbered_by_their_list_or_else_by_their_equations():
    lines = "b' = -b\na' = b - a\noutputs: a, b"
    assert Equations(lines).states == ("b", "a")
    listed = Equations(f"states: a, b\n{lines}")
    assert listed.states == ("a", "b") and listed.endpoints == (0, 1)
    assert listed(torch.zeros(1), torch.tensor([[1.0, 3.0]]), torch.zeros(1, 0)).tolist() == [[2.0, -3.0]]


def test_outputs_initial_values_lags_and_fractions():
    text = """
        parameters: V = 2, LAG = 0.5, F1 = 0.7 in (0, 1), E0 = -1 in (-inf, inf)
        x' = -x
        y' = x - y
        x(0) = V/4
        lag(y) = LAG
        F(x) = F1
        C = x/V          # of one state: in its place
        E = E0 + x*y     # of two: after the states
        two = 2
        HALF = V/two
        outputs: C, E, x
    """
    model = Equations(text).double()
    theta, y = start(model), torch.tensor([[4.0, 3.0]], dtype=torch.float64)
    assert model.initial_state(theta).tolist() == [[0.5, 0.0]]
    assert model.lag(theta).tolist() == [[0.0, 0.5]]
    assert model.bioavailability(theta).tolist() == [[0.7, 1.0]]
    assert model.endpoints == (0, 2, 3)
    assert model.observe(y, theta)[0, list(model.endpoints)].tolist() == [2.0, 11.0, 4.0]
    assert model.ranges == {"F1": (0.0, 1.0), "E0": (-np.inf, np.inf)}
    # a number is no parameter
    assert {name: value.tolist() for name, value in model.derived(theta).items()} == {"HALF": [1.0]}


def test_an_output_states_its_error_and_its_limit():
    model = Equations(
        "parameters: K = 1\nx' = -K*x\ny' = -x\nC = x/2\n"
        "outputs: C ~ combined(b = 0.2, a = 0.5) lloq 0.05, y, D ~ student()\nD = y/2\noutputs: E ~ log_normal\nE = 2*x"
    )
    assert [assay.output for assay in model.assays] == ["C", "y", "D", "E"]
    assert [assay.lloq for assay in model.assays] == [0.05, None, None, None]
    errors = [assay.residual_error() for assay in model.assays]
    assert [type(error).__name__ for error in errors if error] == ["CombinedError", "StudentTError", "LogNormalError"]
    assert errors[0].values == {"a": 0.5, "b": 0.2} and errors[1] is None and errors[2].freedom == 4.0


def test_a_model_without_parameters():
    assert check_text("x' = -x\nk = 2\noutputs: x")
    assert Equations("x' = -x\nk = 2\noutputs: x").derived(torch.zeros(1, 0)) == {}


def test_time_in_the_text_makes_the_model_non_autonomous():
    assert Equations(GOOD).autonomous
    timed = Equations("x' = -x*r\nr = exp(-t)\noutputs: x").double()
    assert not timed.autonomous
    dose = Dose(0.0, 1.0, interval=1.0, steady_state=1)
    with pytest.raises(ValueError, match="changes with time"):
        solve(timed, torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64), [[dose]])


def test_a_text_a_file_and_a_model_of_the_library(tmp_path):
    path = tmp_path / "model.txt"
    path.write_text(GOOD + "  # µmol\n", encoding="utf-8")
    assert Equations(file=str(path)).text == path.read_text(encoding="utf-8")
    assert Equations(model="sir").states == ("susceptible", "infected", "recovered")
    with pytest.raises(ValueError, match="there is no file"):
        Equations(file=str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match="did you mean 'tmdd'"):
        Equations(model="tmd")
    for wrong in ({}, {"text": GOOD, "model": "sir"}):
        with pytest.raises(ValueError, match="takes one of"):
            Equations(**wrong)


def test_a_checkpoint_holds_the_text(tmp_path):
    path = tmp_path / "model.txt"
    path.write_text(GOOD)
    described = [part.describe(Equations(**one)) for one in ({"text": GOOD}, {"file": str(path)}, {"model": "tmdd"})]
    path.unlink()
    again = [part.make(one, Dynamics, "dynamics") for one in described]
    assert [model.text for model in again] == [GOOD, GOOD, Equations(model="tmdd").text]
    assert part.describe(again[1]) == described[1]


@pytest.mark.parametrize("gate", ["where(t > TE, 1, 0)", "hill(t, TE, 20)"])
def test_a_learned_time_has_its_gradient_in_a_steep_hill_and_none_in_a_condition(gate):
    model = Equations(f"parameters: K = 2, TE = 8\nopen = {gate}\nx' = -K*open*x\nx(0) = 1\noutputs: x").double()
    theta = start(model)

    def total(theta):
        times = torch.tensor([2.0, 7.0, 8.5, 9.0], dtype=torch.float64)
        states = solve(model, theta, times, start=torch.zeros(1, dtype=torch.float64), engine=FINE).states
        return states.square().sum()

    own = theta.clone().requires_grad_()
    found = float(torch.autograd.grad(total(own), own)[0][0, 1])
    shift = torch.tensor([[0.0, 1e-3]], dtype=torch.float64)
    difference = float(total(theta + shift) - total(theta - shift)) / 2e-3
    assert difference > 0.1
    assert found == pytest.approx(difference, rel=1e-3) if "hill" in gate else found == 0.0

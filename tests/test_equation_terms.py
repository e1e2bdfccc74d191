"""Networks as terms of a model's text, and models as Python functions."""

import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch

from neuralpk import Dose, LatentTask, Subject
from neuralpk.cohort import Cohort
from neuralpk.cohort_batch import collate
from neuralpk.dynamics import EquationError, Equations, FixedParameters, FunctionError, HybridDynamics, symbols
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.scaling import CovariateScale, Scaling
from neuralpk.solve import RungeKutta, TorchDiffEq
from neuralpk.solve.field_translation import translated

TURNOVER = """parameters: KA = 1, CL = 1, V = 10, KIN = 5, KOUT = 0.05
depot' = -KA*depot
central' = KA*depot - CLf/V*central
CLf = CL*exp(network(C, response/100, hidden=4))
C = central/V
effect = network(C, monotone=increasing, zero_at=0, range=(0, 1), random=SENS)
response' = KIN*(1 - effect) - KOUT*response
response(0) = KIN/KOUT
outputs: C, response"""
SCALING = Scaling(time=48.0, amount=100.0, value=(2.0, 50.0))


def made(text, seed=0, moved=0.3):
    """A model whose weights have moved from their start."""
    torch.manual_seed(seed)
    model = Equations(text).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(moved * torch.randn_like(weight))
    return model


def start(model, n=1):
    return torch.tensor([[*model.guess(None).values()]], dtype=torch.float64).repeat(n, 1)


def curve(options, x, moved=0.5, seed=0):
    model = made(f"x' = -x\ny = network(x, {options})\noutputs: x", seed, moved)
    return model.term("y", x=torch.as_tensor(x, dtype=torch.float64)).detach()


# ---- what a network is


def test_a_network_is_named_by_its_line_and_learned_with_the_model():
    model = Equations(TURNOVER)
    assert [term.name for term in model.terms()] == ["CLf", "effect"]
    assert model.parameter_names == ("KA", "CL", "V", "KIN", "KOUT", "SENS") and model.fixed == ("SENS",)
    assert len(list(model.parameters())) == 4 + 3
    two = Equations("x' = network(x) - network(x, t)\ny = network(x)\noutputs: y")
    assert [term.name for term in two.terms()] == ["x", "x 2", "y"]


def test_states_and_gradients_of_compiled_code_are_those_of_torch():
    model = made(TURNOVER)
    model.build(SCALING)
    theta = start(model, 3) * torch.linspace(0.8, 1.2, 3, dtype=torch.float64)[:, None]
    theta.requires_grad_()
    times = np.array([0.5, 3.0, 12.0, 30.0])
    people = [Subject(str(k), times + k, np.full(4, np.nan), (Dose(0, 80.0), Dose(10.0, 50.0))) for k in range(3)]
    found = []
    for engine in (RungeKutta(1e-10, 1e-12), TorchDiffEq("dopri8", rtol=1e-11, atol=1e-13)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            solution = engine.solve(model, theta[:, None], collate(people, dtype=torch.float64))
        leaves = [theta, *model.parameters()]
        seen = model.observe(solution.states, solution.theta)
        # weights of the outputs of CLf act through the observed values too
        found.append([solution.states, *torch.autograd.grad(seen.square().sum(), leaves)])
    assert translated(model, solution.states[:, 0].detach(), theta[:, None].detach()) is not None
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7 * float(other.detach().abs().max()))


def test_a_network_starts_without_effect_and_at_zero_it_is_exactly_zero():
    x = np.array([-3.0, 0.0, 0.7, 40.0])
    assert curve("hidden=4", x, moved=0.0).tolist() == [0.0] * 4
    assert curve("range=(0, inf)", x, moved=0.0).tolist() == [1.0] * 4
    for options in ("zero_at=0", "zero_at=0, range=(-2, 1)", "monotone=decreasing, zero_at=0", "zero_at=0.7"):
        at = 0.7 if "0.7" in options else 0.0
        found = curve(options, x)
        assert found[x == at].tolist() == [0.0], options
        assert (found[x != at] != 0.0).all()
    both = made("y' = -y\nx' = -x\nz = network(x, y, zero_at=2)\noutputs: z")
    assert both.term("z", x=2.0, y=torch.linspace(-3, 3, 7)).tolist() == [0.0] * 7
    assert both.term("z", x=2.1, y=1.0).item() != 0.0


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ("range=(0, inf)", 0.0, math.inf),
        ("range=(-1, 3)", -1.0, 3.0),
        ("range=(-1, 3), zero_at=0", -1.0, 3.0),
        ("range=(0, 0.5), zero_at=0, monotone=increasing", 0.0, 0.5),
        ("range=(-0.5, 0), zero_at=0, monotone=decreasing", -0.5, 0.0),
        ("range=(0, inf), zero_at=0, monotone=increasing, prior_sd=20", 0.0, math.inf),
    ],
)
def test_the_output_stays_in_its_range(options, low, high):
    x = np.linspace(-5.0, 20.0, 200)
    for seed in range(3):
        found = curve(options, x, moved=1.0, seed=seed)
        assert float(found.min()) >= low and float(found.max()) <= high
        assert float(found.max() - found.min()) > 1e-3


@pytest.mark.parametrize("direction", ["increasing", "decreasing"])
def test_a_monotone_network_is_monotone_in_each_input(direction):
    sign = 1.0 if direction == "increasing" else -1.0
    for seed in range(5):
        model = made(f"x' = -x\ny' = -y\nz = network(x, y, monotone={direction})\noutputs: z", seed, 2.0)
        x, y = torch.rand(2, 1, 300, dtype=torch.float64) * 6 - 3
        more = torch.rand(300, dtype=torch.float64)
        for dx, dy in ((more, 0.0), (0.0, more)):
            assert (sign * (model.term("z", x=x + dx, y=y + dy) - model.term("z", x=x, y=y)) >= 0.0).all()


# ---- the magnitudes of its inputs


def test_inputs_are_read_in_the_magnitudes_of_the_data_or_of_the_course_of_a_typical_patient():
    model = Equations(
        """parameters: CL = 1, V = 10, KE0 = 0.5
        central' = -CL/V*central
        site' = KE0*(central/V - site)
        C = central/V
        a = network(C)
        b = network(2*central, t)
        c = network(site - 0)
        outputs: C, site"""
    )
    assert [term.size.tolist() for term in model.terms()] == [[1.0], [1.0, 1.0], [1.0]]
    model.build(Scaling(time=24.0, amount=100.0, value=(3.0, 5.0)))
    measured, mixed, site = (term.size.tolist() for term in model.terms())
    assert measured == [3.0]
    assert mixed == pytest.approx([200.0 / 3, 8.0], rel=1e-3)
    highest = 10.0 * 0.5 / 0.4 * (math.exp(-0.1 * 4.02) - math.exp(-0.5 * 4.02))  # at log(5)/0.4 h
    assert site == pytest.approx([highest / 3], rel=0.1)
    again = copy.deepcopy(model)
    again.build(Scaling(time=24.0, amount=1000.0, value=(3.0, 5.0)))
    assert again.terms()[1].size[0].item() == pytest.approx(10 * mixed[0])


def test_a_covariate_is_an_input():
    model = Equations("covariates: WT\nx' = -x*exp(effect)\neffect = network(WT, zero_at=70)\noutputs: x")
    model.build(Scaling(covariates={"WT": CovariateScale(80.0, 0.2, True)}))
    assert model.terms()[0].size.tolist() == pytest.approx([10.0 / 3])
    assert model.term("effect", WT=70.0).item() == 0.0


def test_an_input_that_does_not_move_is_said_to_be_in_its_own_unit():
    model = Equations("x' = -x\ny' = -y\nz = network(y)\noutputs: x, z")
    with pytest.warns(UserWarning, match="input 1 of the network in 'z' does not move"):
        model.build(Scaling(amount=10.0, value=(1.0,)))
    assert model.terms()[0].size.tolist() == [1.0]


# ---- the population


def test_the_factor_of_a_patient_has_a_fixed_typical_value_of_one():
    model = PopulationModel(Equations(TURNOVER), PopulationParameters()).build(SCALING)
    names = [one.name for one in model.coordinates()]
    assert "SENS" not in names and "omega SENS" in names
    effect = model.dynamics.term("effect", C=4.0)
    assert model.dynamics.term("effect", C=4.0, SENS=3.0).item() == pytest.approx(3 * effect.item())
    held = FixedParameters(Equations(TURNOVER), {"SENS": 1.0})
    assert held.fixed == () and "SENS" not in held.parameter_names
    assert HybridDynamics(Equations(TURNOVER)).fixed == ("SENS",)


def test_the_prior_of_the_weights_is_that_of_every_network_here():
    model = Equations("x' = -x\ny = network(x)\noutputs: y")
    at_start = model.log_prior().item()
    with torch.no_grad():
        model.terms()[0].network[0].weight.add_(0.1)
    assert model.log_prior().item() == pytest.approx(at_start - 8 * 0.5, rel=1e-5)  # one standard deviation each
    model.centre_prior()
    assert model.log_prior().item() == pytest.approx(0.0, abs=1e-6)
    assert Equations("x' = -x\noutputs: x").log_prior() == 0.0


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_task_learns_an_effect_saves_it_and_draws_it(tmp_path):
    import neuralpk
    from neuralpk.cohort_figures import learned_figures, learned_term
    from neuralpk.objectives import MarginalLikelihood

    text = "parameters: K = 0.2, E0 = 10\nx' = -K*x\nE = E0*(1 + effect)\neffect = network(x, zero_at=0)\noutputs: x, E"
    times = np.repeat([0.5, 2.0, 5.0, 9.0, 14.0], 2)
    random = np.random.default_rng(0)

    def patient(k):
        x = 10.0 * np.exp(0.2 * random.normal()) * np.exp(-0.2 * times)
        values = np.where(np.arange(10) % 2, 10.0 * (1 + x / (2 + x)), x) * np.exp(0.05 * random.normal(size=10))
        return Subject(str(k), times, values, (Dose(0.0, 10.0),), endpoints=1 + np.arange(10) % 2)

    cohort = Cohort(tuple(patient(k) for k in range(6)))
    fitted = neuralpk.fit(
        cohort, Equations(text), objective=MarginalLikelihood(2, 2), epochs=2, learning_rate=0.03, progress=False
    )
    learned = learned_term(fitted.task, "effect", cohort, np.array([0.0, 1.0, 5.0]))
    assert learned.output[0] == learned.low[0] == learned.high[0] == 0.0
    assert 0.1 < learned.output[2] < 2.0 and learned.low[2] < learned.high[2]
    assert set(learned_figures(fitted.task, cohort)) == {"network effect"}
    with pytest.raises(ValueError, match="there is no network 'E'"):
        learned_term(fitted.task, "E", cohort)
    fitted.save(tmp_path / "one.ckpt")
    loaded = LatentTask.load_from_checkpoint(tmp_path / "one.ckpt").model.dynamics
    x = torch.linspace(0.0, 10.0, 5)
    assert torch.equal(loaded.term("effect", x=x), fitted.task.model.dynamics.term("effect", x=x))


# ---- values of a variable


def test_the_value_of_a_variable_needs_what_it_reads():
    model = Equations(TURNOVER)
    assert model.term("CLf", CL=2.0, C=torch.ones(3), response=1.0).tolist() == [2.0] * 3
    with pytest.raises(ValueError, match="CLf depends on CL: give a value"):
        model.term("CLf", C=1.0, response=2.0)
    with pytest.raises(ValueError, match=r"no variable 'efect' .*'effect'"):
        model.term("efect", C=1.0)
    with pytest.raises(ValueError, match="c has no value here"):
        model.term("effect", c=1.0)
    with pytest.raises(ValueError, match="no network 'efect'"):
        model.network_inputs("efect", None, None, None)


# ---- mistakes

MISTAKES = {
    "unknown option": ("network(x, hiden=4)", "no option 'hiden' .*'hidden'", 17),
    "option twice": ("network(x, hidden=4, hidden=5)", "given twice", 27),
    "no input": ("network(hidden=4)", "needs an input before its options", 14),
    "nothing": ("network()", "a number, a name", 14),
    "input after an option": ("network(x, hidden=4, x)", "inputs of a network come before", 27),
    "half a unit": ("network(x, hidden=2.5)", "whole number of at least 1, not 2.5", 24),
    "no unit": ("network(x, hidden=0)", "at least 1, not 0", 24),
    "endless": ("network(x, hidden=inf)", "at least 1, not inf", 24),
    "direction": ("network(x, monotone=up)", "increasing or decreasing", 26),
    "zero far away": ("network(x, zero_at=inf)", "finite", 25),
    "range the wrong way": ("network(x, range=(1, 0))", "above the first", 23),
    "range with one end": ("network(x, range=(1, inf))", "two finite ends", 23),
    "zero outside the range": ("network(x, zero_at=0, range=(1, 2))", "0 is not in the range", 6),
    "zero at an end": ("network(x, zero_at=0, range=(0, 2))", "add monotone=increasing", 6),
    "zero at the other end": ("network(x, zero_at=0, range=(-1, 0), monotone=increasing)", "monotone=decreasing", 6),
    "no prior": ("network(x, prior_sd=0)", "above 0, not 0", 26),
    "constant": ("network(2, x)", "this is a constant", 14),
    "constant variable": ("network(x, a)", "this is a constant", 17),
    "without inputs": ("network + x", r"write network\(…\)", 6),
    "factor that exists": ("network(x, random=K)", "defined already, in line 1", 24),
    "nearly a network": ("netwrok(x)", "did you mean 'network'", 6),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_named_with_its_place(kind):
    term, message, column = MISTAKES[kind]
    with pytest.raises(EquationError, match=message) as mistake:
        Equations(f"parameters: K = 1\nx' = {term} - K*x + a\na = 2\noutputs: x")
    assert (mistake.value.line, mistake.value.column) == (2, column)


# ---- models as functions


def transit(state, parameter):
    rates = [parameter.KTR * state["depot"]]
    slopes = {"depot": -rates[0]}
    for k in range(1, 4):
        rates.append(parameter.KTR * state[f"transit{k}"])
        slopes[f"transit{k}"] = rates[k - 1] - rates[k]
    C = state.central / parameter.V
    slopes["central"] = rates[-1] - parameter.VMAX * C / (parameter.KM + C)
    return slopes


def growth(state, parameter, t):
    load = symbols.max(state.tumour, 1e-3)
    effect = symbols.where((t > 2) & ~(load < 0.5), parameter.K * np.exp(-parameter.D * t), 0)
    logistic = 1 - torch.pow(load / 40.0, 2) - np.minimum(load, 3) * 1e-05
    return {"tumour": parameter.G * load * logistic - effect * load ** (1 / 3), "drug": -(2**state.drug - 1)}


def test_the_text_of_a_function_has_its_slopes_and_its_names():
    text = """parameters: KTR = 1, VMAX = 5, KM = 2, V = 10
    depot' = -KTR*depot
    transit1' = KTR*depot - KTR*transit1
    transit2' = KTR*transit1 - KTR*transit2
    transit3' = KTR*transit2 - KTR*transit3
    central' = KTR*transit3 - VMAX*C/(KM + C)
    C = central/V
    lag(depot) = KM/4
    F(depot) = 0.5
    central(0) = 2*V
    outputs: C"""
    written = Equations.from_function(
        transit,
        {"KTR": 1, "VMAX": 5.0, "KM": 2.0, "V": 10.0},
        ["C"],
        initial=lambda p: {"central": 2 * p.V},
        lag=lambda parameter: {"depot": parameter.KM / 4},
        bioavailability={"depot": 0.5},
    )
    assert "C = central/V" in written.text.splitlines()
    same(written, Equations(text))
    assert Equations(written.text).text == written.text


def test_operations_of_python_numpy_and_torch_are_those_of_the_text():
    written = Equations.from_function(
        growth, {"K": 0.3, "D": (0.2, 0, 1), "G": (0.1, -math.inf, math.inf)}, ["tumour"], {"tumour": 3.0}
    )
    assert written.ranges == {"D": (0.0, 1.0), "G": (-math.inf, math.inf)} and not written.autonomous
    text = """parameters: K = 0.3, D = 0.2 in (0, 1), G = 0.1 in (-inf, inf)
    tumour' = G*load*(1 - (load/40)^2 - min(load, 3)*1e-5) - effect*load^(1/3)
    drug' = -(2^drug - 1)
    load = max(tumour, 0.001)
    effect = where(t > 2 and not load < 0.5, K*exp(-D*t), 0)
    tumour(0) = 3
    outputs: tumour"""
    same(written, Equations(text))


def same(one, other):
    """Two models have the same slopes, starts, lags and outputs."""
    one, other = one.double(), other.double()
    assert (one.states, one.parameter_names, one.endpoints) == (other.states, other.parameter_names, other.endpoints)
    torch.manual_seed(0)
    theta = start(one, 50) * (0.5 + torch.rand(50, 1, dtype=torch.float64))
    y, t = 5 * torch.rand(50, len(one.states), dtype=torch.float64), 5 * torch.rand(50, dtype=torch.float64)
    torch.testing.assert_close(one(t, y, theta), other(t, y, theta), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(one.observe(y, theta), other.observe(y, theta))
    torch.testing.assert_close(one.initial_state(theta), other.initial_state(theta))
    for mine, its in ((one.lag(theta), other.lag(theta)), (one.bioavailability(theta), other.bioavailability(theta))):
        assert (mine is None) == (its is None)
        if mine is not None:
            torch.testing.assert_close(mine, its)


def turnover(state, parameter):
    C = state.central / parameter.V
    inhibition = parameter.IMAX * C / (parameter.IC50 + C)
    return {
        "depot": -parameter.KA * state.depot,
        "central": parameter.KA * state.depot - parameter.CL * C,
        "response": parameter.KIN * (1 - inhibition) - parameter.KOUT * state.response,
    }


def tmdd(s, p):
    C, CP = s.central / p.V1, s.peripheral / p.V2
    bound = p.KON * C * s.target - p.KOFF * s.complex
    exchange = p.Q * (C - CP)
    return {
        "central": -p.CL * C - exchange - p.V1 * bound,
        "peripheral": exchange,
        "target": p.KSYN - p.KDEG * s.target - bound,
        "complex": bound - p.KINT * s.complex,
    }


def myelosuppression(s, p):
    C, KTR = s.central / p.V, 4 / p.MTT
    chain = ["prolif", "transit1", "transit2", "transit3", "circ"]
    slopes = {"central": -p.CL * C, "prolif": KTR * s.prolif * ((1 - p.SLOPE * C) * (p.CIRC0 / s.circ) ** p.GAMMA - 1)}
    for before, after in itertools.pairwise(chain):
        slopes[after] = KTR * (s[before] - s[after])
    return slopes


def weibull(s, p, t):
    C = s.central / p.V
    absorbed = p.BETA / p.TD * torch.pow(t / p.TD, p.BETA - 1) * s.depot
    return {"depot": -absorbed, "central": absorbed - p.CL * C}


def glucose(s, p, t):
    G = s.glucose / p.VG
    return {
        "glucose": -(p.P1 + s.action) * s.glucose + p.P1 * p.GB * p.VG,
        "action": -p.P2 * s.action + p.P3 * (s.insulin - p.IB),
        "insulin": p.GAMMA * np.maximum(G - p.H, 0) * t - p.N * (s.insulin - p.IB),
    }


LIBRARY = {
    "turnover_inhibited_input": (turnover, ["C", "response"], lambda p: {"response": p.KIN / p.KOUT}),
    "tmdd": (tmdd, ["C", "target"], lambda p: {"target": p.KSYN / p.KDEG}),
    "myelosuppression": (
        myelosuppression,
        ["C", "circ"],
        lambda p: dict.fromkeys(["prolif", "transit1", "transit2", "transit3", "circ"], p.CIRC0),
    ),
    "weibull_absorption": (weibull, ["C"], None),
    "glucose_insulin": (glucose, ["G", "insulin"], lambda p: {"glucose": p.GB * p.VG, "insulin": p.IB}),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_models_of_the_library_written_as_functions_are_the_same(name):
    function, outputs, initial = LIBRARY[name]
    model = Equations(model=name)
    parameters = {
        one: (value, *model.ranges[one]) if one in model.ranges else value for one, value in model.guess(None).items()
    }
    same(Equations.from_function(function, parameters, outputs, initial), model)


def test_a_long_loop_and_repeated_parts_stay_a_short_text():
    def series(state, parameter):
        total, power = 0, 1
        for k in range(1, 300):
            power = power * state.x / k
            total = total + power
        return {"x": -parameter.K * total}

    model = Equations.from_function(series, {"K": 0.5}, ["x"]).double()
    assert len(model.text) < 30_000
    x = torch.tensor([[1.5]], dtype=torch.float64)
    assert model(x[0], x, start(model)).item() == pytest.approx(-0.5 * math.expm1(1.5), rel=1e-12)


def test_a_network_of_a_function_is_that_of_the_text():
    def model(state, parameter, t):
        C = state.central / parameter.V
        effect = symbols.network(C, hidden=3, monotone="increasing", zero_at=0.0, range=(0, 1), random="S", prior_sd=2)
        clearance = parameter.CL * symbols.exp(symbols.network(C, t))
        return {"central": -clearance * C * (1 + effect - effect**2), "other": symbols.network(C, t) * state.other}

    written = Equations.from_function(model, {"CL": 1.0, "V": 10.0}, ["C"])
    assert [(term.name, len(term.size)) for term in written.terms()] == [("effect", 1), ("v1", 2), ("v2", 2)]
    assert "effect = network(C, hidden=3, monotone=increasing, zero_at=0.0, range=(0, 1), random=S, prior_sd=2)" in (
        written.text.splitlines()
    )


def branch(state, parameter):
    C = state.central / parameter.V
    if C > 2:
        C = 2 * C
    return {"central": -C}


REFUSED = {
    "branch": (branch, r"depends on a value, in .*test_equation_terms.py, line \d+ \(if C > 2:\).*where"),
    "two comparisons": (lambda s, p: {"central": 0 < s.central < p.V}, "depends on a value"),
    "maximum of Python": (lambda s, p: {"central": max(s.central, p.V)}, "depends on a value"),
    "function of math": (lambda s, p: {"central": math.exp(s.central)}, "a number is needed .* not those of math"),
    "loop over a value": (lambda s, p: {"central": sum(p.V for _ in range(s.central))}, "a loop has a fixed length"),
    "elements": (lambda s, p: {"central": sum(s.central)}, "has no elements"),
    "unknown parameter": (
        lambda s, p: {"central": -p.VV * s.central},
        r"no parameter 'VV' .*'V'.*test_equation_terms.py, line \d+ ",
    ),
    "state without a slope": (lambda s, p: {"central": -p.V * s.centrl}, "reads state.centrl .*'central'"),
    "function without a name": (lambda s, p: {"central": np.arctan(s.central)}, "numpy.arctan is not in the language"),
    "function of torch": (lambda s, p: {"central": torch.sigmoid(s.central)}, "torch.sigmoid is not in the language"),
    "sum of numpy": (lambda s, p: {"central": np.add.reduce(s.central)}, "numpy.add.reduce is not translated"),
    "no number": (lambda s, p: {"central": s.central * "2"}, "a symbol or a finite number is expected, not '2'"),
    "infinite": (lambda s, p: {"central": s.central * math.inf}, "not inf"),
    "no slopes": (lambda s, p: {}, "returns the slope of each state"),
    "a slope alone": (lambda s, p: -s.central, "returns values by state"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_written_is_refused(kind):
    function, message = REFUSED[kind]
    with pytest.raises(FunctionError, match=message):
        Equations.from_function(function, {"V": 10.0}, ["central"])


def test_an_output_that_is_no_name_of_the_function_is_refused():
    with pytest.raises(FunctionError, match=r"no output 'c'; there are depot, .*, central, C"):
        Equations.from_function(transit, {"KTR": 1, "VMAX": 5.0, "KM": 2.0, "V": 10.0}, ["c"])

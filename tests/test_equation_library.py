"""The library of equations: every model against the same equations in NumPy, solved by SciPy, and its gradients against
differences."""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy import exp, log, sqrt
from scipy_reference import scipy_states

from neuralpk.cohort import Dose
from neuralpk.dynamics import Equations, library
from neuralpk.solve import RungeKutta, solve
from neuralpk.solve.field_translation import translated

FINE = RungeKutta(rtol=1e-10, atol=1e-12, max_evaluations=10**6)
FINER = RungeKutta(rtol=1e-11, atol=1e-13, max_evaluations=10**6)


def schedule(amount, cmt=1, unit=1.0):
    """A bolus, an infusion, and repeated doses, half as large."""
    return [
        Dose(0.0, amount, cmt),
        Dose(4 * unit, amount, cmt, duration=2.5 * unit),
        Dose(10 * unit, amount / 2, cmt, interval=4 * unit, additional=2),
    ]


@dataclass(frozen=True)
class Case:
    """A model of the library as it is written by hand.

    Args:
        slope: dy/dt from t, the states, and the parameters by name.
        doses: into its states.
        unit: of the times.
        start: states at the first record, from the parameters; None for 0.
        lag: of each compartment that has one, by its number from 1.
        fraction: that arrives in each compartment that has one, by its number from 1.
    """

    slope: Callable
    doses: Sequence[Dose]
    unit: float = 1.0
    start: Callable | None = None
    lag: Callable = lambda p: {}
    fraction: Callable = lambda p: {}

    @property
    def times(self):
        return self.unit * np.array([0.7, 1.9, 3.6, 4.9, 6.7, 9.1, 11.3, 15.2, 17.5, 19.9, 24.7, 29.3])


def delayed(p):
    return {1: p["LAG"]}


def one_compartment(t, y, p):
    return [-p["CL"] / p["V"] * y[0]]


def one_compartment_oral(t, y, p):
    flow = p["KA"] * y[0]
    return [-flow, flow - p["CL"] / p["V"] * y[1]]


def two_compartments(t, y, p):
    out, back = p["Q"] / p["V1"] * y[0], p["Q"] / p["V2"] * y[1]
    return [-p["CL"] / p["V1"] * y[0] - out + back, out - back]


def three_compartments(t, y, p):
    k12, k21, k13, k31 = p["Q"] / p["V1"], p["Q"] / p["V2"], p["Q3"] / p["V1"], p["Q3"] / p["V3"]
    k10 = p["CL"] / p["V1"]
    return [
        -(k10 + k12 + k13) * y[0] + k21 * y[1] + k31 * y[2],
        k12 * y[0] - k21 * y[1],
        k13 * y[0] - k31 * y[2],
    ]


def after_depot(disposition):
    """The same model with a depot before it."""

    def slope(t, y, p):
        flow = p["KA"] * y[0]
        central, *others = disposition(t, y[1:], p)
        return [-flow, flow + central, *others]

    return slope


def parallel_absorption(t, y, p):
    fast, slow = p["KA1"] * y[0], p["KA2"] * y[1]
    return [-fast, -slow, fast + slow - p["CL"] / p["V"] * y[2]]


def transit_absorption(t, y, p):
    n = p["N"]
    ktr = (n + 1) / p["MTT"]
    factorial = sqrt(2 * np.pi) * n ** (n + 0.5) * exp(-n)
    flow = y[0] * ktr * (ktr * t) ** n * exp(-ktr * t) / factorial
    return [0.0, flow - p["KA"] * y[1], p["KA"] * y[1] - p["CL"] / p["V"] * y[2]]


def weibull_absorption(t, y, p):
    flow = p["BETA"] * t ** (p["BETA"] - 1) / p["TD"] ** p["BETA"] * y[0]
    return [-flow, flow - p["CL"] / p["V"] * y[1]]


def michaelis_menten(t, y, p):
    return [-p["VMAX"] * y[0] / (p["KM"] * p["V"] + y[0])]


def linear_michaelis_menten(t, y, p):
    return [-p["CL"] / p["V"] * y[0] - p["VMAX"] * y[0] / (p["KM"] * p["V"] + y[0])]


def time_varying_clearance(t, y, p):
    share = t ** p["GAMMA"] / (t ** p["GAMMA"] + p["T50"] ** p["GAMMA"])
    return two_compartments(t, y, p | {"CL": p["CL"] * exp(p["EMAX"] * share)})


def autoinduction(t, y, p):
    c = y[1] / p["V"]
    made = 1 + p["EMAX"] * c / (p["EC50"] + c)
    return [-p["KA"] * y[0], p["KA"] * y[0] - p["CL"] * y[2] * c, p["KENZ"] * (made - y[2])]


def parent_metabolite(t, y, p):
    flow, cleared = p["KA"] * y[0], p["CL"] / p["V"] * y[1]
    return [
        -flow,
        (1 - p["FP"]) * flow - cleared,
        p["FP"] * flow + p["FM"] * cleared - p["CLM"] / p["VM"] * y[2],
    ]


def enterohepatic_recirculation(t, y, p):
    flow, bile, emptied = p["KA"] * y[0], p["CLB"] / p["V"] * y[1], p["KB"] * y[2]
    return [emptied - flow, flow - bile - p["CL"] / p["V"] * y[1], bile - emptied]


def tmdd(t, y, p):
    drug, peripheral, target, complex_ = y
    binding = p["KON"] * drug / p["V1"] * target - p["KOFF"] * complex_
    central, other = two_compartments(t, [drug, peripheral], p)
    return [
        central - p["V1"] * binding,
        other,
        p["KSYN"] - p["KDEG"] * target - binding,
        binding - p["KINT"] * complex_,
    ]


def tmdd_qss(t, y, p):
    total, peripheral, target = y[0] / p["V1"], y[1], y[2]
    b = target + p["KSS"] - total
    root = sqrt(b * b + 4 * p["KSS"] * total)
    free = 0.5 * (root - b) if b < 0 else 2 * p["KSS"] * total / (root + b)
    bound = target * free / (p["KSS"] + free)
    central, other = two_compartments(t, [free * p["V1"], peripheral], p)
    return [
        central - p["KINT"] * bound * p["V1"],
        other,
        p["KSYN"] - p["KDEG"] * (target - bound) - p["KINT"] * bound,
    ]


def tmdd_michaelis_menten(t, y, p):
    central, other = two_compartments(t, y, p)
    return [central - p["VMAX"] * y[0] / (p["KM"] * p["V1"] + y[0]), other]


def effect_compartment(t, y, p):
    return [-p["CL"] / p["V"] * y[0], p["KE0"] * (y[0] / p["V"] - y[1])]


def turnover(which, sign):
    def slope(t, y, p):
        most, half = (p["IMAX"], p["IC50"]) if sign < 0 else (p["EMAX"], p["EC50"])
        c = y[1] / p["V"]
        changed = 1 + sign * most * c / (half + c)
        made, lost = (changed, 1.0) if which == "input" else (1.0, changed)
        return [*one_compartment_oral(t, y, p), p["KIN"] * made - p["KOUT"] * lost * y[2]]

    return slope


def baseline(p):
    return [0.0, 0.0, p["KIN"] / p["KOUT"]]


def myelosuppression(t, y, p):
    c, (growing, *chain) = y[0] / p["V"], y[1:]
    k = 4 / p["MTT"]
    feedback = (p["CIRC0"] / chain[-1]) ** p["GAMMA"]
    return [
        -p["CL"] * c,
        k * growing * (1 - p["SLOPE"] * c) * feedback - k * growing,
        *(k * (before - own) for before, own in pairwise([growing, *chain])),
    ]


def tumour_simeoni(t, y, p):
    c, growing, weight = y[0] / p["V"], y[1], sum(y[1:])
    killed = p["K2"] * c * growing
    growth = p["LAMBDA0"] * growing / (1 + (p["LAMBDA0"] * weight / p["LAMBDA1"]) ** 20) ** 0.05
    chain = [killed, *(p["K1"] * dying for dying in y[2:])]
    return [-p["CL"] * c, growth - killed, *(before - own for before, own in pairwise(chain))]


def tumour_claret(t, y, p):
    return [-p["KE"] * y[0], (p["KL"] - p["KD"] * y[0] * exp(-p["LAMBDA"] * t)) * y[1]]


def glucose_insulin(t, y, p):
    glucose, action, insulin = y
    return [
        p["P1"] * (p["GB"] * p["VG"] - glucose) - action * glucose,
        p["P3"] * (insulin - p["IB"]) - p["P2"] * action,
        p["GAMMA"] * max(glucose / p["VG"] - p["H"], 0.0) * t - p["N"] * (insulin - p["IB"]),
    ]


def hiv_dynamics(t, y, p):
    target, infected, virus = y
    new = (1 - p["EFF"]) * p["BETA"] * target * virus
    return [
        p["LAMBDA"] - p["D"] * target - new,
        new - p["DELTA"] * infected,
        p["P"] * infected - p["C"] * virus,
    ]


def infected_at_rest(p):
    target = p["DELTA"] * p["C"] / p["BETA"] / p["P"]
    infected = (p["LAMBDA"] - p["D"] * target) / p["DELTA"]
    return [target, infected, p["P"] * infected / p["C"]]


def lotka_volterra(t, y, p):
    return [y[0] * (p["ALPHA"] - p["BETA"] * y[1]), y[1] * (p["DELTA"] * y[0] - p["GAMMA"])]


def sir(t, y, p):
    new = p["BETA"] * y[0] * y[1]
    return [-new, new - p["GAMMA"] * y[1], p["GAMMA"] * y[1]]


def seir(t, y, p):
    new = p["BETA"] * y[0] * y[2]
    return [-new, new - p["SIGMA"] * y[1], p["SIGMA"] * y[1] - p["GAMMA"] * y[2], p["GAMMA"] * y[2]]


def gompertz_growth(t, y, p):
    return [p["KG"] * y[0] * (log(p["CAPACITY"]) - log(y[0]))]


def logistic_growth(t, y, p):
    return [p["KG"] * y[0] * (p["CAPACITY"] - y[0]) / p["CAPACITY"]]


CASES = {
    "one_compartment": Case(one_compartment, schedule(100)),
    "one_compartment_oral_lag": Case(one_compartment_oral, schedule(100), lag=delayed),
    "two_compartments": Case(two_compartments, schedule(100)),
    "two_compartments_oral_lag": Case(after_depot(two_compartments), schedule(100), lag=delayed),
    "three_compartments": Case(three_compartments, schedule(100)),
    "three_compartments_oral_lag": Case(after_depot(three_compartments), [*schedule(100), Dose(6, 20, 2)], lag=delayed),
    "parallel_absorption": Case(
        parallel_absorption,
        [*schedule(100), *schedule(100, 2)],
        lag=lambda p: {2: p["LAG"]},
        fraction=lambda p: {1: p["F1"], 2: 1 - p["F1"]},
    ),
    "transit_absorption": Case(transit_absorption, [Dose(0, 100)]),
    "weibull_absorption": Case(weibull_absorption, [Dose(0, 100), Dose(7, 30, 2, duration=1)]),
    "michaelis_menten": Case(michaelis_menten, schedule(300)),
    "linear_michaelis_menten": Case(linear_michaelis_menten, schedule(300)),
    "time_varying_clearance": Case(time_varying_clearance, schedule(240, unit=10), 10),
    "autoinduction": Case(autoinduction, schedule(600, unit=8), 8, lambda p: [0.0, 0.0, 1.0]),
    "parent_metabolite": Case(parent_metabolite, schedule(100)),
    "enterohepatic_recirculation": Case(enterohepatic_recirculation, schedule(100)),
    "tmdd": Case(tmdd, schedule(60), start=lambda p: [0, 0, p["KSYN"] / p["KDEG"], 0]),
    "tmdd_qss": Case(tmdd_qss, schedule(60), start=lambda p: [0, 0, p["KSYN"] / p["KDEG"]]),
    "tmdd_michaelis_menten": Case(tmdd_michaelis_menten, schedule(60)),
    "effect_compartment": Case(effect_compartment, schedule(100)),
    "direct_emax": Case(one_compartment, schedule(100)),
    "direct_sigmoid_emax": Case(one_compartment, schedule(100)),
    "turnover_inhibited_input": Case(turnover("input", -1), schedule(80, unit=4), 4, baseline),
    "turnover_inhibited_output": Case(turnover("output", -1), schedule(80, unit=4), 4, baseline),
    "turnover_stimulated_input": Case(turnover("input", 1), schedule(80, unit=4), 4, baseline),
    "turnover_stimulated_output": Case(turnover("output", 1), schedule(80, unit=4), 4, baseline),
    "myelosuppression": Case(
        myelosuppression, schedule(100, unit=24), 24, lambda p: [0.0, *[p["CIRC0"]] * 5]
    ),
    "tumour_simeoni": Case(tumour_simeoni, schedule(2), start=lambda p: [0.0, p["W0"], 0.0, 0.0, 0.0]),
    "tumour_claret": Case(tumour_claret, schedule(14), start=lambda p: [0.0, p["BASE"]]),
    "glucose_insulin": Case(
        glucose_insulin, [Dose(0, 300), Dose(20, 10, 3, duration=5)], 6, lambda p: [p["GB"] * p["VG"], 0.0, p["IB"]]
    ),
    "hiv_dynamics": Case(hiv_dynamics, schedule(2e4, 3), start=infected_at_rest),
    "lotka_volterra": Case(lotka_volterra, schedule(5, 2), start=lambda p: [p["PREY0"], p["PRED0"]]),
    "sir": Case(sir, schedule(0.05, 2, 3), 3, lambda p: [1 - p["I0"], p["I0"], 0.0]),
    "seir": Case(seir, schedule(0.05, 2, 3), 3, lambda p: [1 - p["I0"], 0.0, p["I0"], 0.0]),
    "gompertz_growth": Case(gompertz_growth, schedule(50), start=lambda p: [p["BASE"]]),
    "logistic_growth": Case(logistic_growth, schedule(50), start=lambda p: [p["BASE"]]),
}  # fmt: skip


@cache
def model(name):
    return Equations(model=name).double()


def typical(name):
    return torch.tensor([[*model(name).guess(None).values()]], dtype=torch.float64)


def solved(name, theta, engine):
    """States ``[subject, time, state]``."""
    case = CASES[name]
    times = torch.as_tensor(case.times).expand(len(theta), -1)
    start = torch.zeros(len(theta), dtype=torch.float64)
    solution = solve(model(name), theta, times, [case.doses] * len(theta), start=start, engine=engine)
    solution.check()
    return solution.states


def test_every_model_is_tested():
    assert sorted(CASES) == library()


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_compiled_and_gives_the_states_of_scipy(name):
    theta = typical(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert translated(model(name), model(name).initial_state(theta), theta[:, None]) is not None
        found = solved(name, theta, FINE)[0].numpy()
    case, p = CASES[name], dict(zip(model(name).parameter_names, theta[0].tolist(), strict=True))
    y0 = case.start(p) if case.start else [0.0] * found.shape[1]
    expected = scipy_states(lambda t, y: case.slope(t, y, p), y0, case.doses, case.times, case.lag(p), case.fraction(p))
    floor = 1e-5 * np.abs(expected).max(0)
    error = np.abs(found - expected) / (np.abs(expected) + floor)
    assert error.max() < 1e-7


@pytest.mark.parametrize("name", CASES)
def test_the_gradients_of_a_model_are_those_of_differences(name):
    theta = typical(name).requires_grad_()
    states = solved(name, theta, FINER)
    weight = 1.0 / states.detach().abs().amax((0, 1))
    (found,) = torch.autograd.grad((weight * states).sum(), theta)
    # a difference of order four: f' = (8·(f(+h) − f(−h)) − (f(+2h) − f(−2h)))/12h
    size = theta.shape[1]
    step = 1e-3 * torch.diag(theta.detach()[0])
    moved = torch.cat([theta.detach() + k * step for k in (1, -1, 2, -2)])
    value = (weight * solved(name, moved, FINER)).sum((1, 2)).reshape(4, size)
    expected = (8 * (value[0] - value[1]) - (value[2] - value[3])) / 12e-3  # θ·∂/∂θ
    got = (found * theta).detach()[0]
    error = (got - expected).abs() / (expected.abs() + 1e-3 * expected.abs().max())
    # a step across the kink of a maximum has no high order
    assert float(error.max()) < (1e-5 if "max(" in model(name).text else 1e-7)


@pytest.mark.parametrize("name", CASES)
def test_a_model_names_its_source_and_observes_numbers(name):
    text = model(name).text
    assert any(str(year) in text.split("parameters:")[0] for year in range(1830, 2030))
    theta = typical(name).expand(12, -1)
    seen = model(name).observe(solved(name, typical(name), RungeKutta())[0], theta)
    assert torch.isfinite(seen[:, list(model(name).endpoints)]).all()
    assert all(torch.isfinite(value).all() for value in model(name).derived(theta).values())


def test_the_documentation_lists_the_library_with_its_sources():
    page = (Path(__file__).parents[1] / "docs" / "equations.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", page.split("## Library")[1], re.MULTILINE)
    assert sorted(name for name, _ in rows) == library()
    for name, source in rows:
        head = model(name).text.split("parameters:")[0]
        for word in re.findall(r"[A-Z]\w+|\d{4}", source):
            assert word in head, f"{name}: {word}"

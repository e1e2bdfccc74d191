"""Solutions against closed forms, SciPy, and the order that each method is known for."""

import math
import textwrap

import numpy as np
import pytest
import torch
from closed_forms import KA, LAG, LOTKA_VOLTERRA, PARAMETERS, Disposition, F, rate_matrix
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from solving import solve_batch

from neuralpk.cohort import Dose, Subject
from neuralpk.cohort_batch import Doses, collate
from neuralpk.dynamics import CompartmentModel, Dynamics, LotkaVolterra, OrnsteinUhlenbeck
from neuralpk.part import describe, make
from neuralpk.solve import Auto, Engine, Exact, RungeKutta, TorchDiffEq, TorchSDE, solve

ENGINES = {
    # the matrix exponential is good to rounding times the condition of K·h; the other to its tolerance
    "exact": (Exact(), 1e-10),
    "runge_kutta": (RungeKutta(rtol=1e-8, atol=1e-9), 1e-6),
    "torchdiffeq": (TorchDiffEq(method="dopri8", rtol=1e-8, atol=1e-9), 1e-6),
}
TIMES = np.array([0.0, 0.25, 0.5, 1.0, 1.0, 2.0, 3.5, 6.0, 9.0, 12.0, 12.5, 18.0, 24.0, 30.0, 36.0])


def concentrations(model, parameters, subjects, options, times=None):
    """Observed concentration of each subject at its records, ``[subject, observation]``."""
    model = model.double()
    batch = collate(subjects, dtype=torch.float64)
    rows = parameters if isinstance(parameters, list) else [parameters] * len(subjects)
    theta = torch.tensor([[row[name] for name in model.parameter_names] for row in rows], dtype=torch.float64)
    times = None if times is None else torch.as_tensor(times, dtype=torch.float64).expand(len(subjects), -1)
    with torch.no_grad():
        solution = solve_batch(model, theta, batch, times, engine=options)
    solution.check(batch.ids)
    return model.observe(solution.states, solution.theta)[..., model.endpoints[0]].numpy()


def subject(*doses, times=TIMES, name="1", **more):
    return Subject(name, times, np.full(len(times), np.nan), tuple(doses), **more)


def train(f, dose, interval, count, **more):
    return lambda d, t: sum(f(d, t - k * interval, dose, **more) for k in range(count))


def bolus(d, t, dose):
    return d.bolus(t, dose)


def infusion(d, t, dose, duration):
    return d.infusion(t, dose, duration)


def oral(d, t, dose):
    return d.oral(t, dose)


SCENARIOS = {
    # name: (doses, absorption, lag, bioavailability, closed form)
    "bolus": ([Dose(0, 100)], False, False, False, lambda d, t: d.bolus(t, 100)),
    "infusion by rate": ([Dose(0, 100, rate=40)], False, False, False, lambda d, t: d.infusion(t, 100, 2.5)),
    "infusion by duration": ([Dose(0, 100, duration=3)], False, False, False, lambda d, t: d.infusion(t, 100, 3)),
    "oral": ([Dose(0, 100)], True, False, False, lambda d, t: d.oral(t, 100)),
    "oral with lag": ([Dose(0, 100)], True, True, False, lambda d, t: d.oral(t - LAG, 100)),
    "oral with F": ([Dose(0, 100)], True, False, True, lambda d, t: d.oral(t, F * 100)),
    "oral with lag and F": ([Dose(0, 100)], True, True, True, lambda d, t: d.oral(t - LAG, F * 100)),
    "bolus beside a depot": ([Dose(0, 100, compartment=2)], True, False, False, lambda d, t: d.bolus(t, 100)),
    "additional boluses": ([Dose(0, 50, interval=6, additional=4)], False, False, False, train(bolus, 50, 6, 5)),
    "additional infusions": (
        [Dose(0, 50, interval=6, additional=4, duration=2)],
        *(False, False, False),
        train(infusion, 50, 6, 5, duration=2),
    ),
    "overlapping infusions": (
        [Dose(0, 50, interval=6, additional=2, duration=8)],
        *(False, False, False),
        train(infusion, 50, 6, 3, duration=8),
    ),
    "additional oral doses with lag": (
        [Dose(0, 50, interval=12, additional=2)],
        *(True, True, False),
        lambda d, t: train(oral, 50, 12, 3)(d, t - LAG),
    ),
    "repeated records of several kinds": (
        [Dose(0, 100, compartment=2), Dose(1, 30, compartment=2, duration=4), Dose(6, 70), Dose(12.25, 10)],
        *(True, False, False),
        lambda d, t: d.bolus(t, 100) + d.infusion(t - 1, 30, 4) + d.oral(t - 6, 70) + d.oral(t - 12.25, 10),
    ),
}


@pytest.mark.parametrize("compartments", [1, 2, 3])
def test_the_closed_forms_agree_with_a_matrix_exponential(compartments):
    d, t = Disposition.of(compartments), 5.0
    k = rate_matrix(compartments)
    e = np.eye(compartments)[0]
    assert math.isclose(d.bolus(t, 1.0), (expm(k * t) @ e)[0] / 20, rel_tol=1e-12)
    # ∫ exp(Ks) ds over the two hours of the infusion, then three hours of decay
    built_up = np.linalg.solve(k, (expm(k * 2) - np.eye(compartments)) @ e) / 2
    assert math.isclose(d.infusion(t, 1.0, 2.0), (expm(k * 3) @ built_up)[0] / 20, rel_tol=1e-12)
    depot = np.eye(compartments + 1)[0]
    assert math.isclose(d.oral(t, 1.0), (expm(rate_matrix(compartments, True) * t) @ depot)[1] / 20, rel_tol=1e-12)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("compartments", [1, 2, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_linear_model_agrees_with_its_closed_form(engine, compartments, scenario):
    doses, absorbed, lag, bioavailability, closed_form = SCENARIOS[scenario]
    model = CompartmentModel(
        compartments,
        "first_order" if absorbed else "none",
        lag="depot" if lag else None,
        bioavailability="depot" if bioavailability else None,
    )
    options, tolerance = ENGINES[engine]
    parameters = PARAMETERS | {"KA": KA, "LAG": LAG, "F": F}
    found = concentrations(model, parameters, [subject(*doses)], options)[0]
    expected = closed_form(Disposition.of(compartments), TIMES)
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * expected.max())


@pytest.mark.parametrize("method", ["exact", "dopri5", "dopri8", "rk4"])
@pytest.mark.parametrize("duration", [1e-3, 1e-2, 0.1, 1.0, 24.0])
def test_no_infusion_is_too_short_to_be_seen(method, duration):
    # CL·AUC = dose: the amount still inside at the end is what has not been cleared yet
    class WithArea(CompartmentModel):
        """A one-compartment model with a second state that integrates what is cleared."""

        def __init__(self):
            super().__init__(1)
            self.states = ("central", "cleared")
            self.endpoints = (1,)

        def forward(self, t, y, theta):
            cleared = theta[..., 0] / theta[..., 1] * y[..., 0]
            return torch.stack([-cleared, cleared], dim=-1)

        def rate_matrix(self, theta):
            k, zero = theta[..., 0] / theta[..., 1], torch.zeros_like(theta[..., 0])
            return torch.stack([torch.stack([-k, zero], -1), torch.stack([k, zero], -1)], -2)

        def observe(self, y, theta):
            return y

    if method == "exact":
        options = Exact()
    else:
        step = 0.05 if method == "rk4" else None
        options = TorchDiffEq(method=method, rtol=1e-8, atol=1e-10, step=step)
    given = subject(Dose(0, 100, duration=duration), times=np.array([0.0, 120.0]))
    # after 120 h, 30 time constants, exp(−30·…) < 1e-10 of the dose is left
    found = concentrations(WithArea(), {"CL": 5.0, "V1": 20.0}, [given], options)[0, 1]
    assert math.isclose(found, 100.0, rel_tol=1e-6)


DOP853 = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-12}


def by_scipy(field, y0, stops, jumps, times, scale):
    """A boundary-by-boundary DOP853 solution: `jumps[k]` is added to the state at `stops[k]`."""
    out, y = np.zeros(len(times)), np.array(y0, float)
    for k, (stop, jump) in enumerate(zip(stops, jumps, strict=True)):
        y = y + jump
        end = stops[k + 1] if k + 1 < len(stops) else times[-1] + 1e-9
        inside = (times >= stop) & (times < end)
        line = solve_ivp(field, (stop, end), y, dense_output=True, **DOP853)
        out[inside] = scale(line.sol(times[inside]))
        y = line.y[:, -1]
    return out


SMOOTH = TorchDiffEq(method="dopri8", rtol=1e-9, atol=1e-10)
LATER = np.array([0.5, 1.0, 2.0, 4.0, 7.0, 11.0, 13.0, 20.0, 30.0])


def test_michaelis_menten_agrees_with_dop853():
    p = {"VMAX": 12.0, "KM": 0.8, "V1": 20.0, "Q": 3.0, "V2": 40.0}

    def field(t, a):
        c = a[0] / p["V1"]
        exchange = p["Q"] * (c - a[1] / p["V2"])
        return [-p["VMAX"] * c / (p["KM"] + c) - exchange, exchange]

    expected = by_scipy(field, [0, 0], [0.0, 12.0], [[100, 0], [60, 0]], LATER, lambda a: a[0] / p["V1"])
    given = subject(Dose(0, 100), Dose(12, 60), times=LATER)
    found = concentrations(CompartmentModel(2, elimination="michaelis_menten"), p, [given], SMOOTH)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-7)  # a hundred times the local tolerance


def test_clearance_that_changes_with_time_agrees_with_dop853():
    p = {"CL": 8.0, "CLR": 0.4, "KCL": 0.15, "V1": 20.0}

    def field(t, a):
        return -a * p["CL"] * (p["CLR"] + (1 - p["CLR"]) * np.exp(-p["KCL"] * t)) / p["V1"]

    expected = by_scipy(field, [0], [0.0, 12.0], [[100], [60]], LATER, lambda a: a[0] / p["V1"])
    given = subject(Dose(0, 100), Dose(12, 60), times=LATER)
    found = concentrations(CompartmentModel(1, elimination="time_varying"), p, [given], SMOOTH)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
def test_transit_absorption_agrees_with_the_gamma_density(engine):
    # the chain of depot and n transits lets the dose into central at the Erlang rate KTR·(KTR·t)ⁿ·exp(−KTR·t)/n!
    p, n = {"CL": 5.0, "V1": 20.0, "KTR": 2.0}, 3

    def field(t, a):
        return 100 * p["KTR"] * (p["KTR"] * t) ** n * np.exp(-p["KTR"] * t) / math.factorial(n) - a * p["CL"] / p["V1"]

    expected = by_scipy(field, [0], [0.0], [[0]], LATER, lambda a: a[0] / p["V1"])
    options, _ = ENGINES[engine]
    found = concentrations(CompartmentModel(1, "transit", transits=n), p, [subject(Dose(0, 100), times=LATER)], options)
    np.testing.assert_allclose(found[0], expected, rtol=1e-7)


def test_lotka_volterra_agrees_with_dop853():
    model = LotkaVolterra().double()
    theta = torch.tensor([[*LOTKA_VOLTERRA["p"], 1.0, 1.0]], dtype=torch.float64)
    batch = collate([subject(times=np.array([0.0, 10.0]))], dtype=torch.float64)
    solution = solve_batch(model, theta, batch, engine=Auto(rtol=1e-10, atol=1e-10))
    np.testing.assert_allclose(solution.states[0, 1], LOTKA_VOLTERRA["u_dop853"], rtol=1e-8)


PHASES = np.array([0.0, 0.5, 2.0, 5.0, 7.9])
STEADY = {
    "bolus": ({}, "none", lambda d, t: d.repeated_bolus(t, 100, 8.0)),
    "infusion": ({"duration": 2.0}, "none", lambda d, t: d.repeated_infusion(t, 100, 8.0, 2.0)),
    "oral": ({}, "first_order", lambda d, t: d.repeated_oral(t, 100, 8.0)),
}


@pytest.mark.parametrize("kind", STEADY)
@pytest.mark.parametrize("compartments", [1, 3])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_linear_steady_state_agrees_with_the_geometric_series(engine, compartments, kind):
    more, absorption, closed_form = STEADY[kind]
    options, tolerance = ENGINES[engine]
    given = subject(Dose(0, 100, interval=8.0, steady_state=1, **more), times=PHASES)
    found = concentrations(CompartmentModel(compartments, absorption), PARAMETERS | {"KA": KA}, [given], options)[0]
    # a steady state multiplies the error of one interval by 1/(1 − exp(−λ·interval)), here up to 20
    np.testing.assert_allclose(found, closed_form(Disposition.of(compartments), PHASES), rtol=20 * tolerance)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_second_steady_state_is_added_to_the_first(engine):
    options, tolerance = ENGINES[engine]
    given = subject(Dose(0, 100, interval=8.0, steady_state=1), Dose(1, 30, interval=8.0, steady_state=2), times=PHASES)
    found = concentrations(CompartmentModel(1), PARAMETERS, [given], options)[0, 2:]
    d, t = Disposition.of(1), PHASES[2:]
    expected = d.repeated_bolus(t, 100, 8.0) + d.repeated_bolus(t - 1, 30, 8.0)
    np.testing.assert_allclose(found, expected, rtol=20 * tolerance)


@pytest.mark.parametrize(
    "options", [pytest.param(SMOOTH, marks=pytest.mark.slow, id="tight"), pytest.param(Auto(), id="default")]
)
def test_a_michaelis_menten_steady_state_agrees_with_many_doses(options):
    p = {"VMAX": 20.0, "KM": 1.5, "V1": 20.0}
    model = CompartmentModel(1, elimination="michaelis_menten")
    at_once = subject(Dose(0, 100, interval=8.0, steady_state=1), times=PHASES)
    doses = 40  # the distance to the steady state shrinks at least 0.5-fold with each: 0.5^40 < 1e-12
    waited = subject(Dose(0, 100, interval=8.0, additional=doses - 1), times=PHASES + 8.0 * (doses - 1))
    expected = concentrations(model, p, [waited], SMOOTH)[0]
    # the forty intervals of the tight one add up their tolerance; the default rtol is 1e-5 for each step
    tolerance = 1e-6 if options is SMOOTH else 1e-3
    np.testing.assert_allclose(concentrations(model, p, [at_once], options)[0], expected, rtol=tolerance)


@pytest.mark.parametrize("lag", [3.0, 8.0, 13.0, 29.0])
@pytest.mark.parametrize("more", [{}, {"duration": 2.0}, {"duration": 11.0}], ids=["bolus", "short", "overlapping"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_steady_state_with_any_lag_is_that_of_doses_taken_for_ever(engine, more, lag):
    options, tolerance = ENGINES[engine]
    times = np.array([0.0, 0.5, 2.0, 5.5, 7.9, 12.0, 15.0, 21.5, 31.0, 40.0])
    given = subject(Dose(0, 100, interval=8.0, steady_state=1, **more), times=times, rows=np.full(10, 1))
    model = CompartmentModel(1, lag="central")
    found = concentrations(model, PARAMETERS | {"LAG": lag}, [given], options)[0]
    d = Disposition.of(1)
    single = (lambda t: d.infusion(t, 100, more["duration"])) if more else (lambda t: d.bolus(t, 100))
    expected = sum(single(times - lag + 8.0 * k) for k in range(60))
    np.testing.assert_allclose(found, expected, rtol=20 * tolerance)


def test_a_dose_on_its_way_to_a_steady_state_is_cancelled_by_a_reset_and_has_the_gradient_of_its_lag():
    model = CompartmentModel(1, lag="central")
    records = Dose(0, 100, interval=12.0, steady_state=1), Dose(2.0, reset=True, row=1)
    times = np.array([1.0, 2.5, 4.0, 20.0])
    found = concentrations(model, PARAMETERS | {"LAG": 15.0}, [subject(*records, times=times)], Exact())[0]
    assert found[0] > 0 and (found[1:] == 0).all()

    batch = collate([subject(records[0], times=times)], dtype=torch.float64)
    names = model.double().parameter_names

    def line(lag):
        theta = torch.stack([lag if n == "LAG" else lag * 0 + PARAMETERS[n] for n in names])[None]
        solved = solve_batch(model, theta, batch, engine=Exact())
        return model.observe(solved.states, solved.theta)[0, :, 0]

    assert torch.autograd.gradcheck(line, torch.tensor(15.0, dtype=torch.float64, requires_grad=True))


def test_parameters_under_which_a_thousand_doses_overlap_fail_for_their_subject_alone():
    model = CompartmentModel(1, lag="central").double()
    both = [subject(Dose(0, 100, interval=12.0, steady_state=1), name=name) for name in ("1", "2")]
    theta = torch.tensor([[5.0, 20.0, 13.0], [5.0, 20.0, 12_000.0]], dtype=torch.float64)
    solved = solve_batch(model, theta, collate(both, dtype=torch.float64), engine=Exact())
    assert solved.ok.tolist() == [True, False]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_constant_infusion_at_steady_state_is_rate_over_clearance(engine):
    options, tolerance = ENGINES[engine]
    given = subject(Dose(0, rate=12.0, steady_state=1), times=np.array([0.0, 3.0]))
    found = concentrations(CompartmentModel(1), PARAMETERS, [given], options)[0]
    # it has always run, and stops at its record
    np.testing.assert_allclose(found, [12 / 5, 12 / 5 * math.exp(-0.25 * 3)], rtol=tolerance)


def test_bioavailability_shortens_an_infusion_of_given_rate_and_thins_one_of_given_duration():
    model, p = CompartmentModel(1, bioavailability="central"), PARAMETERS | {"F": F}
    by_rate, by_duration = subject(Dose(0, 100, rate=50)), subject(Dose(0, 100, duration=2), name="2")
    found = concentrations(model, p, [by_rate, by_duration], Auto())
    d = Disposition.of(1)
    np.testing.assert_allclose(found[0], d.infusion(TIMES, 60, 1.2), rtol=1e-10)
    np.testing.assert_allclose(found[1], d.infusion(TIMES, 60, 2.0), rtol=1e-10)


def test_a_lag_delays_an_infusion_whole():
    given = subject(Dose(0, 100, duration=2))
    found = concentrations(CompartmentModel(2, lag="central"), PARAMETERS | {"LAG": LAG}, [given], Auto())
    np.testing.assert_allclose(found[0], Disposition.of(2).infusion(TIMES - LAG, 100, 2), rtol=1e-10)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_reset_empties_the_body_and_stops_infusions(engine):
    options, tolerance = ENGINES[engine]
    doses = (Dose(0, 100), Dose(1, 80, duration=10), Dose(5, 40, reset=True), Dose(9, reset=True))
    given = subject(*doses, times=np.array([4.0, 5.0, 6.0, 8.5, 10.0, 20.0]))
    found = concentrations(CompartmentModel(1), PARAMETERS, [given], options)[0]
    d = Disposition.of(1)
    expected = [d.bolus(4, 100) + d.infusion(3, 80, 10), d.bolus(0, 40), d.bolus(1, 40), d.bolus(3.5, 40), 0, 0]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
def test_records_of_the_same_time_act_in_the_order_of_their_rows(engine):
    options, tolerance = ENGINES[engine]
    times, rows = np.array([0.0, 0.0, 6.0, 6.0]), np.array([0, 2, 3, 5])
    given = subject(Dose(0, 100, row=1), Dose(6, 50, row=4), times=times, rows=rows)
    found = concentrations(CompartmentModel(1), PARAMETERS, [given], options)[0]
    d = Disposition.of(1)
    expected = [0.0, d.bolus(0, 100), d.bolus(6, 100), d.bolus(6, 100) + d.bolus(0, 50)]
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=1e-14)


def test_wanted_times_are_read_after_the_doses_of_the_same_time_in_any_order():
    wanted = np.array([12.0, 0.0, 6.0, 6.0, 3.0])
    given = subject(Dose(0, 100), Dose(6, 50))
    found = concentrations(CompartmentModel(1), PARAMETERS, [given], Auto(), wanted)[0]
    d = Disposition.of(1)
    np.testing.assert_allclose(found, d.bolus(wanted, 100) + d.bolus(wanted - 6, 50), rtol=1e-10)


def refused(**change):
    """Arguments of `solve` for a plain problem, one of them spoilt."""
    model = CompartmentModel(1).double()
    batch = collate([subject(Dose(1, 100), times=np.array([1.0, 2.0]))], dtype=torch.float64)
    theta = torch.tensor([[5.0, 20.0]], dtype=torch.float64)
    good = {"dynamics": model, "y0": model.initial_state(theta), "theta": theta, "batch": batch}
    return good | change


def test_what_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match=r"theta must be .* CL, V1; got \(1, 1, 3\)"):
        solve_batch(**refused(theta=torch.ones(1, 3, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"y0 must be"):
        solve_batch(**refused(y0=torch.zeros(1, 2, dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"share float32 or float64, got .*float32.*float64"):
        solve_batch(**refused(theta=torch.ones(1, 2)))
    with pytest.raises(ValueError, match=r"times must be finite"):
        solve_batch(**refused(times=torch.tensor([[1.0, math.nan]], dtype=torch.float64)))
    with pytest.raises(ValueError, match=r"before the first record of subject 1"):
        solve_batch(**refused(times=torch.tensor([[0.5]], dtype=torch.float64)))
    elsewhere = collate([subject(Dose(1, 100, compartment=3), times=np.array([1.0]))], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"subject 1: a dose into a compartment beyond the 1"):
        solve_batch(**refused(batch=elsewhere))


def test_half_precision_is_refused():
    half = {name: refused()[name].to(torch.bfloat16) for name in ("y0", "theta", "batch")}
    with pytest.raises(ValueError, match=r"float32 or float64, got .*bfloat16"):
        solve_batch(**refused(**half))


def test_a_tolerance_that_float32_cannot_resolve_is_refused():
    single = {name: refused()[name].to(torch.float32) for name in ("y0", "theta", "batch")}
    options = TorchDiffEq(rtol=1e-8)
    with pytest.raises(ValueError, match=r"rtol 1e-08 is below what float32 resolves"):
        solve_batch(**refused(**single), engine=options)


def test_the_exact_engine_refuses_what_is_not_linear():
    model = CompartmentModel(1, elimination="michaelis_menten").double()
    theta = torch.ones(1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"Exact solves linear dynamics and CompartmentModel is not linear"):
        solve_batch(**refused(dynamics=model, theta=theta), engine=Exact())


@pytest.mark.parametrize(
    ("engine", "wrong", "message"),
    [
        (TorchDiffEq, {"gradient": "none"}, "gradient is one of backprop, adjoint"),
        (TorchDiffEq, {"method": "bosh3"}, "method is one of dopri5"),
        (TorchDiffEq, {"method": "rk4"}, "takes fixed steps"),
        (TorchDiffEq, {"step": 0.1}, "chooses its steps by the tolerances"),
        (TorchDiffEq, {"atol": -1.0}, "tolerances must be positive"),
        (RungeKutta, {"rtol": 0.0}, "tolerances must be positive"),
        (Auto, {"max_evaluations": 0}, "max_evaluations must be 1 or more"),
        (TorchSDE, {"step": 0.0}, "step must be positive"),
        (TorchSDE, {"gradient": "discrete"}, "gradient is one of backprop, adjoint"),
    ],
)
def test_options_that_do_not_exist_are_refused(engine, wrong, message):
    with pytest.raises(ValueError, match=message):
        engine(**wrong)


@pytest.mark.parametrize(
    ("engine", "dynamics", "message"),
    [
        (RungeKutta(), OrnsteinUhlenbeck(0.1), "RungeKutta solves ordinary .* OrnsteinUhlenbeck is stochastic"),
        (TorchDiffEq(), OrnsteinUhlenbeck(0.1), "TorchDiffEq solves ordinary .* OrnsteinUhlenbeck is stochastic"),
        (Exact(), OrnsteinUhlenbeck(0.1), "Exact solves ordinary .* OrnsteinUhlenbeck is stochastic"),
        (TorchSDE(), CompartmentModel(1), "TorchSDE solves stochastic .* CompartmentModel has no noise"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_engine_refuses_what_it_cannot_solve(engine, dynamics, message):
    theta = torch.ones(1, len(dynamics.parameter_names))
    with pytest.raises(ValueError, match=message):
        solve(dynamics, theta, torch.tensor([[0.0, 1.0]]), engine=engine)


@pytest.mark.parametrize("engine", [Auto(1e-4), Exact(), RungeKutta(), TorchDiffEq("rk4", step=0.5), TorchSDE(0.1)])
def test_an_engine_is_a_part(engine):
    assert make(describe(engine), Engine, "engine") == engine


def test_a_system_is_solved_without_patients():
    model, times = CompartmentModel(1).double(), torch.tensor([[0.0, 1.0, 6.0], [2.0, 8.0, 3.0]], dtype=torch.float64)
    theta = torch.tensor([[5.0, 20.0], [2.0, 10.0]], dtype=torch.float64)
    doses = [[Dose(0, 100)], [Dose(2, 50), Dose(0, 80)]]  # in any order
    solution = solve(model, theta, times, doses)
    solution.check()
    k = (theta[:, 0] / theta[:, 1])[:, None]
    expected = torch.tensor([[100.0], [80.0]]) * torch.exp(-k * times)
    expected[1] += 50.0 * torch.exp(-k[1] * (times[1] - 2.0))
    torch.testing.assert_close(solution.states[..., 0], expected)
    assert solution.engine == Exact()
    again = solve(model, theta[:, None], times, Doses.of(doses, torch.float64), engine=RungeKutta(1e-9, 1e-9))
    torch.testing.assert_close(again.states[..., 0], expected, rtol=1e-7, atol=1e-7)
    # a clearance that doubles at 1 h
    periods = torch.stack([theta, theta * torch.tensor([2.0, 1.0])], dim=1)
    begin = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    changed = solve(model, periods, times[:1].expand(2, -1), doses, period_start=begin).states[0, :, 0]
    assert float(changed[2]) == pytest.approx(100.0 * math.exp(-0.25 - 0.5 * 5.0))


def test_without_a_dose_the_solve_begins_at_the_first_time_or_where_it_is_told():
    model, times = CompartmentModel(1).double(), torch.tensor([3.0, 4.0], dtype=torch.float64)
    theta, y0 = torch.tensor([[5.0, 20.0]], dtype=torch.float64), torch.tensor([[100.0]], dtype=torch.float64)
    found = solve(model, theta, times, y0=y0).states[0, :, 0]
    torch.testing.assert_close(found, 100.0 * torch.exp(-0.25 * (times - 3.0)))
    early = solve(model, theta, times, y0=y0, start=torch.tensor([1.0], dtype=torch.float64)).states[0, :, 0]
    torch.testing.assert_close(early, 100.0 * torch.exp(-0.25 * (times - 1.0)))


def test_what_does_not_fit_a_solve_without_patients_is_refused():
    model, theta, times = CompartmentModel(1), torch.ones(2, 2), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match=r"one sequence for each of the 2 subjects, got 1"):
        solve(model, theta, times, [[Dose(0, 1)]])
    with pytest.raises(ValueError, match=r"theta has 3 periods: pass period_start"):
        solve(model, torch.ones(2, 3, 2), times)
    with pytest.raises(ValueError, match=r"times must be \[subject, time\] with 2 subjects"):
        solve(model, theta, torch.ones(3, 4))


def test_the_example_of_the_documentation_runs():
    code = textwrap.dedent(solve.__doc__.split("L/h::")[1].split("Args:")[0])
    names = {}
    exec(code, names)
    expected = 10.0 * np.exp(-np.outer([0.2, 0.4], [0.0, 1.0, 2.0]))
    np.testing.assert_allclose(names["concentration"], expected, rtol=1e-6)


class Sine(Dynamics):
    """dy/dt = sin y, y = 2·arctan(tan(y0/2)·exp(t))."""

    states = ("y",)
    parameter_names = ("unused",)

    def forward(self, t, y, theta):
        return torch.sin(y)


class Coupled(Dynamics):
    """dy/dt = M·y with a fixed 10 × 10 matrix of norm about one."""

    states = tuple(f"y{k}" for k in range(10))
    parameter_names = ("unused",)

    def __init__(self):
        super().__init__()
        self.register_buffer("m", torch.randn(10, 10, generator=torch.Generator().manual_seed(1)).double() / 10**0.5)

    def forward(self, t, y, theta):
        return y @ self.m.T


def error_at_one(dynamics, y0, options):
    batch = collate([subject(times=np.array([0.0, 1.0]))], dtype=torch.float64)
    theta = torch.zeros(1, 1, dtype=torch.float64)
    with torch.no_grad():
        y = solve_batch(dynamics, theta, batch, engine=options, y0=y0).states[0, 1].numpy()
    if isinstance(dynamics, Sine):
        exact = 2 * np.arctan(np.tan(y0[0].numpy() / 2) * np.e)
    else:
        exact = expm(dynamics.m.numpy()) @ y0[0].numpy()
    return np.linalg.norm(y - exact) / np.linalg.norm(exact)


PROBLEMS = {
    "sine": (Sine(), torch.tensor([[0.7]], dtype=torch.float64)),
    "linear": (Coupled(), torch.linspace(-1, 1, 10, dtype=torch.float64)[None]),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4)])
def test_halving_the_step_shrinks_the_error_by_the_order_of_the_method(method, order, problem):
    errors = [error_at_one(*PROBLEMS[problem], TorchDiffEq(method=method, step=2.0**-k)) for k in (6, 7)]
    # at 1/64 the next term of the expansion still bends the slope by a few hundredths
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("method", ["dopri5", "dopri8"])
def test_an_adaptive_method_keeps_to_its_tolerance(method, tolerance, problem):
    options = TorchDiffEq(method=method, rtol=tolerance, atol=tolerance)
    assert error_at_one(*PROBLEMS[problem], options) <= 10 * tolerance  # errors of several steps add up

"""Dynamics that contain another one: every hook of the inner dynamics is passed on."""

import inspect

import pytest
import torch
from solving import solve_batch

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.dynamics import (
    CompartmentModel,
    ConcentrationModel,
    Decoder,
    Dynamics,
    FixedParameters,
    FluctuatingClearance,
    HybridDynamics,
    LotkaVolterra,
    NeuralCompartments,
    NeuralFlows,
    StochasticLotkaVolterra,
    Wrapper,
)
from neuralpk.part import subclasses
from neuralpk.residual_error import Assay
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto
from neuralpk.symbolic import Library, TermDynamics
from neuralpk.symbolic.sensitivity import Sensitivity, predict_with_slopes

SCALING = Scaling(24.0, 100.0, (3.0,))
LIBRARY = Library(("c", "p"), degree=1, sines=False)
WRAPPERS = {
    FixedParameters: lambda inner: FixedParameters(inner, {"V1": 40.0}),
    HybridDynamics: lambda inner: HybridDynamics(inner, NeuralFlows(2)),
    NeuralCompartments: lambda inner: NeuralCompartments(inner, 2),
    TermDynamics: lambda inner: TermDynamics(inner, LIBRARY),
    Sensitivity: lambda inner: Sensitivity(inner, 2),
    FluctuatingClearance: lambda inner: FluctuatingClearance(inner, 0.1),
    StochasticLotkaVolterra: lambda inner: StochasticLotkaVolterra(0.1),
}
# the vector field itself, which a wrapper is there to change; and what follows from the other hooks and attributes
OWN = {"forward", "rate_matrix", "forcing", "perceptron", "named", "follow", "with_covariates", "read_cohort"}
# hooks that take the place of the inner dynamics' answer
REPLACED = {
    (StochasticLotkaVolterra, "state_size"): "the states are logarithms",
    (Sensitivity, "dose_unit"): "the states are amounts; the unit enters the field and the observation",
}
HOOKS = sorted(
    name
    for base in (Decoder, Dynamics)
    for name, value in vars(base).items()
    if inspect.isfunction(value) and not name.startswith("_") and name not in OWN
)


def arguments(dynamics, hook):
    """Something to call a hook with."""
    theta = torch.ones(3, 4, len(dynamics.parameter_names)) + torch.arange(len(dynamics.parameter_names))
    y = torch.ones(3, 4, len(dynamics.states))
    every = {"theta": theta[:, 0], "scaling": SCALING}
    if hook in ("observe", "penalty"):
        every |= {"t": torch.zeros(3, 4), "y": y, "theta": theta, "mask": torch.ones(3, 4, dtype=torch.bool)}
    return [every[name] for name in inspect.signature(getattr(dynamics, hook)).parameters]


def test_all_wrappers_are_looked_at():
    classes = {cls for cls in subclasses(Wrapper) if cls.__module__.startswith("neuralpk.")}
    assert {cls for cls in classes if not inspect.isabstract(cls)} == set(WRAPPERS)
    assert {"lag", "bioavailability", "dose_unit", "initial_state", "observe", "build", "guess"} <= set(HOOKS)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_every_hook_is_passed_on_with_the_parameters_and_states_of_the_inner_dynamics(wrapper, hook):
    dynamics = WRAPPERS[wrapper](CompartmentModel(2))
    original, calls = getattr(dynamics.inner, hook), []

    def spy(*given):
        calls.append(given)
        return original(*given)

    setattr(dynamics.inner, hook, spy)
    getattr(dynamics, hook)(*arguments(dynamics, hook))
    if (wrapper, hook) in REPLACED:
        assert not calls
        return
    assert calls, f"{wrapper.__name__} forgets {hook}: pass it on in Wrapper"
    names = list(inspect.signature(original).parameters)
    for given in calls:
        for name, value in zip(names, given, strict=True):
            if name == "theta":
                assert value.shape[-1] == len(dynamics.inner.parameter_names)
            if name == "y":
                assert value.shape[-1] == len(dynamics.inner.states)


@pytest.mark.parametrize("wrapper", [cls for cls in WRAPPERS if cls is not StochasticLotkaVolterra])
def test_the_attributes_of_the_inner_dynamics_are_taken_over(wrapper):
    inner = CompartmentModel(2)
    inner.assays, inner.covariates = (Assay("C", "additive", {}, 0.1),), {"CL": 5.0}
    dynamics = WRAPPERS[wrapper](inner)
    assert dynamics.states[: len(inner.states)] == inner.states
    assert (dynamics.endpoints, dynamics.flows, dynamics.dosed) == (inner.endpoints, inner.flows, inner.dosed)
    assert (dynamics.assays, dynamics.covariates) == (inner.assays, inner.covariates)
    size = dynamics.state_size(SCALING)
    assert size == (100.0, 100.0, *[1.0] * (len(dynamics.states) - 2))


@pytest.mark.parametrize("hook", ["lag", "bioavailability", "dose_unit"])
def test_further_states_have_neither_a_lag_nor_a_share_of_a_dose_nor_a_unit(hook):
    dynamics = FluctuatingClearance(CompartmentModel(2), 0.1)
    value = torch.full((3, 2), 0.5)
    setattr(dynamics.inner, hook, lambda theta: value)
    fill = {"lag": 0.0}.get(hook, 1.0)
    assert getattr(dynamics, hook)(torch.ones(3, 4)).tolist() == [[0.5, 0.5, fill]] * 3


def test_a_hybrid_is_built_for_data_and_built_again_for_others():
    hybrid = HybridDynamics(CompartmentModel(2))
    for amount, time in ((100.0, 24.0), (7.0, 3.0)):
        hybrid.build(Scaling(time, amount, (3.0,)))
        part = hybrid.correction.rate_network
        assert (float(part.amount_scale), float(part.time_scale)) == (amount, time)
        guess = hybrid.guess(Scaling(time, amount, (3.0,)))
        assert part.reference.tolist() == pytest.approx([v for name, v in guess.items() if name.startswith("base_")])
    assert isinstance(HybridDynamics(LotkaVolterra()).correction.states, tuple)


CONCENTRATIONS = torch.tensor([[0.1, 0.1, 0.1, 40.0]], dtype=torch.float64)


def dosed():
    doses = (Dose(0, 100), Dose(3, 50, duration=2))
    return collate(Cohort((Subject("1", [1.0, 5.0], [1.0, 1.0], doses),)), dtype=torch.float64)


def test_terms_without_coefficients_leave_a_dose_in_the_unit_of_the_mechanism():
    mechanism = ConcentrationModel().double()
    terms = TermDynamics(mechanism, LIBRARY).double()
    whole = torch.cat([CONCENTRATIONS, CONCENTRATIONS.new_zeros(1, len(terms.parameter_names) - 4)], dim=1)
    expected = solve_batch(mechanism, CONCENTRATIONS, dosed())
    found = solve_batch(terms, whole, dosed())
    assert float(expected.states[0, 0, 0]) == pytest.approx(2.06, abs=0.01)
    torch.testing.assert_close(found.states, expected.states, rtol=1e-4, atol=0.0)


def test_slopes_count_what_a_dose_adds_to_a_concentration():
    dynamics, ways = ConcentrationModel().double(), torch.eye(4, dtype=torch.float64)[None]
    value, slopes, ok = predict_with_slopes(dynamics, CONCENTRATIONS, ways, dosed(), Auto(rtol=1e-9, atol=1e-11))
    assert bool(ok.all())
    exact = solve_batch(dynamics, CONCENTRATIONS, dosed()).states[..., 0]
    torch.testing.assert_close(value, exact, rtol=1e-6, atol=0.0)
    # doses are linear in 1/V1
    torch.testing.assert_close(slopes[..., 3], -value / 40.0, rtol=1e-6, atol=0.0)
    for k in range(3):
        h = 1e-4 * ways[:, k]
        ends = [
            predict_with_slopes(dynamics, CONCENTRATIONS + s * h, ways, dosed(), Auto(rtol=1e-9, atol=1e-11))[0]
            for s in (1, -1)
        ]
        torch.testing.assert_close(slopes[..., k], (ends[0] - ends[1]) / 2e-4, rtol=1e-4, atol=0.0)


def test_a_dose_into_a_state_that_the_equations_do_not_have_has_no_slopes():
    batch = collate(Cohort((Subject("17", [1.0], [1.0], (Dose(0, 100, compartment=3),)),)), dtype=torch.float64)
    with pytest.raises(ValueError, match="subject 17"):
        predict_with_slopes(ConcentrationModel().double(), CONCENTRATIONS, torch.ones(1, 4, 1).double(), batch, Auto())

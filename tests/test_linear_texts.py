"""Texts that are linear in their states: solved exactly, as the compartment models that they describe."""

import pytest
import torch

from neuralpk.cohort import Dose
from neuralpk.dynamics import CompartmentModel, Equations, FixedParameters, HybridDynamics, NeuralSlope, library
from neuralpk.solve import Auto, Exact, RungeKutta, exact, solve

FINE = RungeKutta(rtol=1e-11, atol=1e-13, max_evaluations=10**6)
LINEAR = [
    "direct_emax", "direct_sigmoid_emax", "effect_compartment", "enterohepatic_recirculation", "one_compartment",
    "one_compartment_oral_lag", "parallel_absorption", "parent_metabolite", "three_compartments",
    "three_compartments_oral_lag", "two_compartments", "two_compartments_oral_lag",
]  # fmt: skip
TWINS = {
    "one_compartment": CompartmentModel(1),
    "one_compartment_oral_lag": CompartmentModel(1, "first_order", lag="depot"),
    "two_compartments": CompartmentModel(2),
    "two_compartments_oral_lag": CompartmentModel(2, "first_order", lag="depot"),
    "three_compartments": CompartmentModel(3),
    "three_compartments_oral_lag": CompartmentModel(3, "first_order", lag="depot"),
}
TRANSITS = """
    parameters: KTR = 2, CL = 5, V = 50, LAG = 0.3
    depot' = -KTR*depot
    central' = KTR*t2 - CL/V*central
    t1' = KTR*(depot - t1)
    t2' = KTR*(t1 - t2)
    lag(depot) = LAG
    C = central/V
    outputs: C
"""
TURNOVER = """
    parameters: KA = 1, CL = 5, V = 50, KIN = 2, KOUT = 0.1, SLOPE = 0.3
    depot' = -KA*depot
    central' = KA*depot - CL*C
    C = central/V
    response' = KIN - SLOPE*C - KOUT*response
    response(0) = KIN/KOUT
    unused = log(response)*depot
    outputs: C, response
"""
DOSES = [
    Dose(0.0, 100.0, interval=12.0, steady_state=1),
    Dose(4.0, 80.0, duration=2.5),
    Dose(10.0, 50.0, interval=4.0, additional=2),
    Dose(26.0, 30.0, reset=True),
]
TIMES = [0.0, 0.7, 1.9, 1.9, 3.6, 4.9, 6.7, 9.1, 11.3, 24.7, 26.0, 29.3]


def typical(model):
    spread = torch.linspace(0.9, 1.1, len(model.parameter_names), dtype=torch.float64)
    return torch.tensor([[*model.guess(None).values()]], dtype=torch.float64) * spread


def solved(model, theta, engine, doses=DOSES):
    """States and their gradient in theta."""
    theta = theta.clone().requires_grad_()
    solution = solve(
        model, theta, torch.tensor(TIMES, dtype=theta.dtype).expand(len(theta), -1), [doses], engine=engine
    )
    solution.check()
    weights = torch.linspace(0.5, 1.5, solution.states.numel(), dtype=theta.dtype).reshape(solution.states.shape)
    (gradient,) = torch.autograd.grad((weights * solution.states).sum(), theta)
    return solution, gradient


def test_which_models_of_the_library_are_linear():
    assert [name for name in library() if Equations(model=name).linear] == LINEAR


@pytest.mark.parametrize("name", TWINS)
def test_a_linear_text_is_solved_as_its_compartment_model(name):
    text, twin = Equations(model=name).double(), TWINS[name]
    theta = typical(text)
    names = [one if one in text.parameter_names else one.removesuffix("1") for one in twin.parameter_names]
    order = [text.parameter_names.index(one) for one in names]
    found, slope = solved(text, theta, Auto())
    expected, of_twin = solved(twin, theta[:, order], Auto())
    assert isinstance(found.engine, Exact)
    torch.testing.assert_close(found.states, expected.states, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slope[:, order], of_twin, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("text", [*(name for name in LINEAR if name not in TWINS), TRANSITS, TURNOVER])
def test_a_linear_text_is_solved_as_by_small_steps(text):
    """One way and both, cycles and chains of equal rates, with a constant input and without."""
    model = (Equations(model=text) if text in LINEAR else Equations(text)).double()
    theta = typical(model)
    found, slope = solved(model, theta, Auto())
    expected, of_steps = solved(model, theta, FINE)
    torch.testing.assert_close(found.states, expected.states, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(slope, of_steps, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("line", "linear"),
    {
        "-K*x": True,
        "2 - K*(x + y)/(1 + WT)": True,
        "-exp(-K)*x - hill(WT, K, 2)*y": True,
        "-where(WT > 70, K, 2)*x": True,
        "-network(WT)*x": True,
        "-a*x": True,
        "-b*x": False,
        "-K*x*y": False,
        "-K/x": False,
        "-K*x/(1 + y)": False,
        "-K*x^1": False,
        "-max(x, 0)": False,
        "-K*x*exp(-t)": False,
        "-K*x + t": False,
        "-network(x)*K": False,
    }.items(),
)
def test_linear_is_what_the_states_enter_by_constant_coefficients_alone(line, linear):
    lines = ["parameters: K = 2, K2 = 3", "covariates: WT = 70", f"x' = {line} + 0*K*WT", "y' = -K2*y"]
    model = Equations("\n".join([*lines, "a = K*WT", "b = a*x", "c = a + b", "outputs: x, c"])).double()
    assert model.linear == linear
    theta, y = torch.tensor([[2.0, 3.0, 70.0]]).double(), torch.tensor([[0.4, 0.7]]).double()
    if linear:
        k, u = model.rate_matrix(theta), model.forcing(theta)
        slope = (k @ y[..., None])[..., 0] + (0.0 if u is None else u)
        torch.testing.assert_close(slope, model(torch.zeros(1).double(), y, theta), rtol=1e-13, atol=0.0)
    else:
        with pytest.raises(TypeError, match="not linear"):
            model.rate_matrix(theta)
        assert model.forcing(theta) is None


def test_the_coefficients_follow_a_covariate_that_changes():
    model = Equations(
        "parameters: CL = 5, V = 50, KIN = 1\ncovariates: WT\ncentral' = KIN*WT/70 - CL*WT/70/V*central\n"
        "C = central/V\noutputs: C"
    ).double()
    periods = torch.tensor([[5.0, 50.0, 1.0, 70.0], [5.0, 50.0, 1.0, 140.0]], dtype=torch.float64)
    by_hand = Equations("parameters: K = 0.1, U = 1\nc' = U - K*c\noutputs: c").double()
    times = torch.tensor([2.0, 10.0], dtype=torch.float64)
    changing = solve(
        model, periods[None], times, [[Dose(0.0, 100.0)]], period_start=torch.tensor([[-1e9, 4.0]]).double()
    )
    halves = torch.tensor([[[0.1, 1.0], [0.2, 2.0]]], dtype=torch.float64)
    expected = solve(by_hand, halves, times, [[Dose(0.0, 100.0)]], period_start=torch.tensor([[-1e9, 4.0]]).double())
    torch.testing.assert_close(changing.states, expected.states, rtol=1e-12, atol=0.0)


def test_a_network_of_covariates_has_its_gradient():
    torch.manual_seed(1)
    model = Equations(
        "parameters: CL = 5, V = 50\ncovariates: WT\ncentral' = -CL*exp(network(WT/70, hidden=3))/V*central\n"
        "C = central/V\noutputs: C"
    ).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    theta, times = torch.tensor([[5.0, 50.0, 60.0]]).double(), torch.tensor(TIMES[:-2]).double()
    weights = [*model.parameters()]

    def gradient(engine):
        states = solve(model, theta, times, [DOSES[:3]], engine=engine).states
        return torch.autograd.grad(states.square().sum(), weights)

    for found, expected in zip(gradient(Auto()), gradient(FINE), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)


def test_the_constant_part_of_the_slope_survives_what_is_wrapped_around_it():
    text = Equations(TURNOVER).double()
    theta = typical(text)
    fixed = FixedParameters(text, {"KA": float(theta[0, 0])}).double()
    found = solve(fixed, theta[:, 1:], torch.tensor(TIMES).double(), [DOSES]).states
    torch.testing.assert_close(found, solved(text, theta, Auto())[0].states.detach(), rtol=1e-6, atol=1e-6)
    hybrid = HybridDynamics(Equations(TURNOVER), NeuralSlope(latent_size=0, hidden=4)).double()
    y, t = torch.tensor([[3.0, 4.0, 20.0]]).double(), torch.zeros(1).double()
    assert not hybrid.linear and hybrid.perceptron(theta) is None
    torch.testing.assert_close(hybrid(t, y, theta), text(t, y, theta) + hybrid.correction(t, y, theta[:, 6:]))


def test_matrix_exponentials_of_torch_have_the_constant_part_too(monkeypatch):
    model = Equations(TURNOVER).double()
    theta = typical(model)
    expected, slope = solved(model, theta, Auto())
    monkeypatch.setattr(exact, "integrate", exact.matrix_exponentials)
    found, of_torch = solved(model, theta, Auto())
    torch.testing.assert_close(found.states, expected.states, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(of_torch, slope, rtol=1e-7, atol=1e-7)

"""What the network learned, as an equation: slopes, subsets, the refit, and the way through all of it."""

import io
import itertools

import numpy as np
import pytest
import torch
from solving import solve_batch

from neuralpk.cohort import Dose, Subject
from neuralpk.cohort_batch import collate
from neuralpk.diagnostics.correction_plots import correction_maps, covered_region
from neuralpk.dynamics import CompartmentModel, HybridDynamics, LotkaVolterra
from neuralpk.solve import Auto
from neuralpk.symbolic import IndividualNetwork, Library, TermDynamics, discover, learn_correction
from neuralpk.symbolic.best_subsets import best_subsets, criterion, without
from neuralpk.symbolic.equations import with_error
from neuralpk.symbolic.learn_correction import magnitudes, unit_ways
from neuralpk.symbolic.least_squares_through_solver import minimise
from neuralpk.symbolic.sensitivity import predict_with_slopes

LIBRARY = Library(("x", "y"), degree=3)
TRUTH = torch.tensor([[1.3, 0.9, 1.8, 0.8, 0.44249296, 4.6280594]], dtype=torch.float64)
FREE = ("prey0", "predator0")
EXACT, TIGHT = Auto(rtol=1e-10, atol=1e-12), Auto(rtol=1e-6, atol=1e-8)
TIMES = np.linspace(0.0, 3.0, 31)


def predator_and_prey(noise, seeds):
    """Series of the same line, each with noise of its own."""
    endpoints = np.tile([1, 2], len(TIMES))
    times = np.repeat(TIMES, 2)
    empty = collate([Subject("1", times, np.ones(len(times)), endpoints=endpoints)], dtype=torch.float64)
    dynamics = LotkaVolterra()
    states = solve_batch(dynamics, TRUTH, empty, engine=EXACT).states[0].numpy()
    clean = np.where(endpoints == 1, states[:, 0], states[:, 1])
    scale = np.array([clean[endpoints == e].mean() for e in (1, 2)])[endpoints - 1]
    values = [clean + noise * scale * np.random.default_rng(seed).normal(size=len(clean)) for seed in seeds]
    subjects = [Subject(str(k), times, value, endpoints=endpoints) for k, value in enumerate(values)]
    return collate(subjects, dtype=torch.float64)


def only_linear(batch):
    """alpha and gamma known, no interaction, the initial state where the series begins."""
    theta = torch.tensor([[1.3, 0.0, 1.8, 0.0, 0.0, 0.0]], dtype=torch.float64).repeat(len(batch), 1)
    theta[:, 4:] = batch.value[:, :2]
    return theta


@pytest.fixture(scope="module")
def learned():
    torch.set_num_threads(1)
    batch = predator_and_prey(0.01, (1, 2))
    return batch, learn_correction(LotkaVolterra(), only_linear(batch), batch, FREE, steps=25)


@pytest.fixture(scope="module")
def equations(learned):
    batch, hybrid = learned
    return discover(hybrid.hybrid, hybrid.theta, batch, LIBRARY, FREE)


def test_a_library_writes_its_terms_and_evaluates_them():
    library = Library(("x", "y"), degree=2)
    assert library.terms == ("1", "x", "y", "x²", "x·y", "y²", "sin(x)", "sin(y)")
    x, y = 0.3, -2.0
    expected = [1, x, y, x * x, x * y, y * y, np.sin(x), np.sin(y)]
    found = library.values(torch.tensor([[x, y]], dtype=torch.float64))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    assert len(Library(("x", "y")).terms) == 23
    assert Library(("a", "b", "c"), 1, sines=False).terms == ("1", "a", "b", "c")
    with pytest.raises(ValueError, match="degree"):
        Library(("x",), degree=-1)


def test_slopes_of_a_prediction_are_those_of_differences():
    times = np.array([0.0, 0.2, 0.5])
    batch = collate([Subject("1", times, np.ones(3), endpoints=np.array([1, 2, 1]))], dtype=torch.float64)
    network = IndividualNetwork(("prey", "predator"), (0.5, 1.0), 3.0, hidden=2)
    dynamics = TermDynamics(LotkaVolterra(), Library(("x", "y"), degree=1), network)
    theta = torch.cat([TRUTH[0], 0.3 * torch.randn(len(dynamics.parameter_names) - 6, dtype=torch.float64)])[None]
    # a direction for every kind of parameter: a rate, an initial state, a weight, the share, a coefficient
    places = [0, 4, 7, 6 + len(network.parameter_names), theta.shape[1] - 3]
    ways = unit_ways(theta.shape[1], torch.tensor([places]))
    _, slopes, ok = predict_with_slopes(dynamics, theta, ways, batch, TIGHT)
    assert bool(ok.all())
    for k, place in enumerate(places):
        h = 1e-3 * torch.eye(theta.shape[1], dtype=torch.float64)[place]
        ends = [predict_with_slopes(dynamics, theta + s * h, ways, batch, TIGHT)[0] for s in (1, -1)]
        # second order in h, and the solver's own error over h
        torch.testing.assert_close(slopes[..., k], (ends[0] - ends[1]) / 2e-3, rtol=1e-3, atol=1e-4)


def test_slopes_of_a_dosed_patient_are_those_of_differences():
    patient = Subject("1", np.array([0.5, 2.0, 9.0]), np.ones(3), (Dose(0.0, 100.0), Dose(4.0, 50.0, duration=2.0)))
    batch = collate([patient], dtype=torch.float64)
    model = CompartmentModel(compartments=1, elimination="michaelis_menten")
    theta = torch.tensor([[20.0, 2.0, 10.0]], dtype=torch.float64)
    ways = unit_ways(3, torch.tensor([[0, 1, 2]]))
    _, slopes, _ = predict_with_slopes(model, theta, ways, batch, TIGHT)
    for k in range(3):
        h = torch.zeros_like(theta)
        h[0, k] = 1e-3
        ends = [predict_with_slopes(model, theta + s * h, ways, batch, TIGHT)[0] for s in (1, -1)]
        torch.testing.assert_close(slopes[..., k], (ends[0] - ends[1]) / 2e-3, rtol=1e-3, atol=1e-4)


def test_pairs_are_searched_in_full_and_triples_nearly():
    rng = np.random.default_rng(3)
    design = torch.as_tensor(rng.normal(size=(2, 40, 9)) @ rng.normal(size=(9, 9)))  # correlated columns
    target = torch.as_tensor(rng.normal(size=(2, 40)))
    found = best_subsets(design, target, most=3, width=9)
    assert [s.shape[-1] for s, _, _ in found] == [0, 1, 2, 3]
    for size, (subsets, coefficients, squares) in enumerate(found[1:], start=1):
        for problem in range(2):
            every = {
                columns: float(np.linalg.lstsq(design[problem][:, columns], target[problem], rcond=None)[1][0])
                for columns in itertools.combinations(range(9), size)
            }
            best = min(every, key=every.get)
            if size < 3:
                assert tuple(subsets[problem, 0].tolist()) == best
            own = tuple(subsets[problem, 0].tolist())
            np.testing.assert_allclose(squares[problem, 0], every[own], rtol=1e-8)
            assert every[own] <= 1.1 * every[best]
            columns = design[problem][:, list(own)]
            fit = target[problem] - columns @ coefficients[problem, 0]
            np.testing.assert_allclose(fit.square().sum(), squares[problem, 0], rtol=1e-8)
            assert len({tuple(row) for row in subsets[problem].tolist()}) == subsets.shape[1]


def test_what_other_columns_explain_is_taken_out():
    columns, nuisance = torch.randn(1, 20, 4, dtype=torch.float64), torch.randn(1, 20, 2, dtype=torch.float64)
    rest = without(columns, nuisance)
    torch.testing.assert_close(nuisance.mT @ rest, torch.zeros(1, 2, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(without(columns + nuisance[..., :1], nuisance), rest)


def test_the_criterion_charges_for_terms_and_for_the_choice_among_them():
    squares, records = torch.tensor([2.0, 2.0]), torch.tensor([50.0, 50.0])
    one, two = criterion(squares, records, torch.tensor([1, 2]), 46)
    assert float(two - one) == pytest.approx(np.log(50) + 2 * np.log(46))


def test_a_refit_finds_the_least_squares_and_its_errors_are_those_of_repeated_studies():
    batch = predator_and_prey(0.01, range(20))
    dynamics = TermDynamics(LotkaVolterra(), LIBRARY)
    theta = torch.cat([only_linear(batch), torch.zeros(len(batch), 2 * len(LIBRARY.terms), dtype=torch.float64)], 1)
    xy, p = LIBRARY.terms.index("x·y"), 6
    places = torch.tensor([p + xy, p + len(LIBRARY.terms) + xy, 4, 5]).expand(len(batch), -1)
    theta[:, places[0, 0]], theta[:, places[0, 1]] = -0.7, 0.6
    ways, scale = unit_ways(theta.shape[1], places), magnitudes(dynamics, batch)
    fit = minimise(dynamics, theta, ways, batch, scale)
    assert bool(fit.converged.all())
    gradient = (fit.slopes.mT @ fit.residual[..., None])[..., 0]
    length = fit.slopes.norm(dim=1) * fit.squares.sqrt()[:, None]
    assert float((gradient / length).abs().max()) < 0.02  # the residuals are at right angles to every slope
    found = fit.theta.gather(1, places)[:, :2]
    covariance = torch.linalg.inv(fit.slopes.mT @ fit.slopes) * (fit.squares / 58)[:, None, None]
    sd = covariance.diagonal(dim1=1, dim2=2).sqrt()[:, :2]
    # an information of the design, known beforehand: 0.38 and 1.70 % of beta and gamma at 1 % noise
    torch.testing.assert_close(sd.mean(0), torch.tensor([0.0038 * 0.9, 0.0170 * 0.8]).double(), rtol=0.1, atol=0.0)
    z = (found - torch.tensor([-0.9, 0.8], dtype=torch.float64)) / sd
    assert 0.65 < float(z.square().mean().sqrt()) < 1.4  # 40 numbers: 1 give or take 0.11


def test_an_equation_that_cannot_be_solved_loses_to_every_other():
    batch = predator_and_prey(0.01, (0, 1))
    dynamics = TermDynamics(LotkaVolterra(), LIBRARY)
    theta = torch.cat([only_linear(batch), torch.zeros(2, 2 * len(LIBRARY.terms), dtype=torch.float64)], 1)
    cube = 6 + LIBRARY.terms.index("x³")
    theta[0, cube] = 50.0  # explodes before the first sample
    ways, few = unit_ways(theta.shape[1], torch.tensor([[cube], [cube]])), Auto(max_evaluations=150)
    fit = minimise(dynamics, theta, ways, batch, magnitudes(dynamics, batch), engine=few)
    assert float(fit.squares[0]) == float("inf")
    assert np.isfinite(float(fit.squares[1]))


def test_the_terms_of_predator_and_prey_are_found_again(equations):
    for found in equations:
        assert found.terms == {"prey": ("x·y",), "predator": ("x·y",)}
        for name, true in (("prey: x·y", -0.9), ("predator: x·y", 0.8), ("prey0", 0.44249296)):
            value, sd = found.estimates[name]
            assert abs(value - true) < 4 * sd
        assert 0.007 < found.residual_sd < 0.014
        assert found.lead > 0
        first, second = found.text(("1.3·x", "−1.8·y")).splitlines()
        assert first.startswith("dx/dt = 1.3·x − 0.") and first.endswith(")·x·y")
        assert second.startswith("dy/dt = −1.8·y + 0.") and second.endswith(")·x·y")


def test_the_network_learns_the_correction_where_the_data_are(learned):
    batch, hybrid = learned
    fine = torch.linspace(0.3, 2.7, 49, dtype=torch.float64).expand(2, -1)
    field = hybrid.hybrid
    states = solve_batch(field, hybrid.theta, batch, fine, engine=EXACT).states
    weights = hybrid.theta[:, None, 6:].expand(-1, 49, -1)
    found = field.correction(fine, states, weights)
    product = states.prod(-1)
    true = torch.stack([-0.9 * product, 0.8 * product], dim=-1)
    error = (found - true).square().mean(1).sqrt() / true.square().mean(1).sqrt()
    assert float(error.max()) < 0.35
    assert float((hybrid.squares / 62).sqrt().max()) < 0.03


def test_series_do_not_disturb_each_other(learned, equations):
    batch, hybrid = learned
    first = torch.tensor([0])
    alone = discover(hybrid.hybrid, hybrid.theta[first], batch.select(first), LIBRARY, FREE)[0]
    together = equations[0]
    assert alone.terms == together.terms
    for name, (value, sd) in alone.estimates.items():
        assert together.estimates[name] == pytest.approx((value, sd), rel=1e-4)


def test_a_correction_that_has_nothing_to_do_is_replaced_by_nothing():
    batch = predator_and_prey(0.01, (5,))
    mechanism, theta = LotkaVolterra(), TRUTH.clone()
    network = IndividualNetwork(mechanism.states, (0.5, 1.0), 3.0)
    together = torch.cat([theta, network.first_weights(1, 0)], dim=1)
    (found,) = discover(HybridDynamics(mechanism, network), together, batch, LIBRARY, FREE)
    assert found.terms == {"prey": (), "predator": ()}
    assert str(found) == "dx/dt = mechanism\ndy/dt = mechanism"


def test_delays_of_doses_are_refused():
    patient = Subject("1", np.array([1.0, 2.0]), np.ones(2), (Dose(0.0, 100.0),))
    batch = collate([patient], dtype=torch.float64)
    model = CompartmentModel(compartments=1, lag="central")
    with pytest.raises(ValueError, match="lag"):
        learn_correction(model, torch.ones(1, 3, dtype=torch.float64), batch, ())


@pytest.mark.parametrize(
    ("value", "sd", "text"),
    [(0.8981, 0.0123, "0.898(12)"), (0.9, 0.0996, "0.900(100)"), (123.4, 15.0, "123(15)"), (2.0, 0.0, "2")],
)
def test_errors_stand_in_units_of_the_last_digit(value, sd, text):
    assert with_error(value, sd) == text


def test_the_figure_shows_fields_and_the_region_of_the_data():
    x, y = np.linspace(0.0, 2.0, 21), np.linspace(0.0, 5.0, 26)
    path = np.column_stack([np.full(20, 1.0), np.linspace(1.0, 4.0, 20)])
    covered = covered_region(x, y, path)
    assert covered[15, 10] and not covered[15, 2] and not covered[0, 10]
    field = np.stack(np.broadcast_arrays(x[None, :] * y[:, None], -x[None, :] + 0 * y[:, None]), axis=-1)
    figure = correction_maps(x, y, {"network": field, "terms": field}, path, path[::5])
    assert [axes.get_title() for axes in figure.axes[:2]] == ["network", "terms"]
    figure.savefig(io.BytesIO(), format="png", dpi=50)
    with pytest.raises(ValueError, match="network"):
        correction_maps(x, y, {"network": field.transpose(1, 0, 2)}, path, path)

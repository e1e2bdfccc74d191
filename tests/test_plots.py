"""Figures: what is drawn is what was given, with units, and odd inputs still make a figure."""

import dataclasses
import io

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba

from neuralpk.cohort import Units
from neuralpk.diagnostics.parameter_plots import latent_space, parameter_recovery
from neuralpk.diagnostics.plots import Panel, individual_panels, phase_plane
from neuralpk.diagnostics.style import running_median

UNITS = Units(time="min", amount="ug", value="ng/mL")
GRID = np.linspace(0.0, 24.0, 50)
LINE = 8.0 * np.exp(-0.1 * GRID)


def panel(name="1", **changes):
    one = Panel(
        id=name,
        times=GRID,
        ipred=LINE,
        lower=0.8 * LINE,
        upper=1.3 * LINE,
        observed_times=np.array([1.0, 4.0, 9.0, 20.0]),
        observed_values=np.array([7.0, np.nan, 4.0, 1.0]),
        seen=np.array([True, True, False, False]),
        pred=0.9 * LINE,
        true=1.1 * LINE,
        dose_times=np.array([0.0, 12.0]),
    )
    return dataclasses.replace(one, **changes)


def render(figure):
    """Draw it all, so that faults that only show while drawing are raised; the image as bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=50)
    return stream.getvalue()


def lines(axes, label):
    return [line for line in axes.lines if line.get_label() == label]


def legend_labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_panels_draw_what_they_are_given():
    figure = individual_panels([panel("1"), panel("2", ipred=2 * LINE)], UNITS)
    render(figure)
    first, second = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["1", "2"]
    np.testing.assert_array_equal(lines(second, "IPRED")[0].get_ydata(), 2 * LINE)
    for label, expected in [("IPRED", LINE), ("PRED", 0.9 * LINE), ("true curve", 1.1 * LINE)]:
        np.testing.assert_array_equal(lines(first, label)[0].get_xydata(), np.column_stack([GRID, expected]))
    band = first.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [0.8 * LINE[-1], 1.3 * LINE[0]])
    np.testing.assert_array_equal(lines(first, "dose")[0].get_xdata(), [0.0, 12.0])
    assert figure.get_supxlabel() == "Time (min)"
    assert figure.get_supylabel() == "Concentration (ng/mL)"


def test_held_out_samples_are_open_and_missing_ones_absent():
    axes = individual_panels([panel()], UNITS).axes[0]
    (seen,), (held,) = lines(axes, "seen"), lines(axes, "held out")
    np.testing.assert_array_equal(seen.get_xydata(), [[1.0, 7.0]])
    np.testing.assert_array_equal(held.get_xydata(), [[9.0, 4.0], [20.0, 1.0]])
    assert to_rgba(held.get_markerfacecolor()) == to_rgba("white") != to_rgba(seen.get_markerfacecolor())


def test_samples_below_the_limit_have_their_own_marker():
    axes = individual_panels([panel(censored=np.array([False, False, False, True]))], UNITS).axes[0]
    np.testing.assert_array_equal(lines(axes, "BLQ, held out")[0].get_xydata(), [[20.0, 1.0]])
    np.testing.assert_array_equal(lines(axes, "held out")[0].get_xydata(), [[9.0, 4.0]])
    assert not lines(axes, "BLQ, seen")


@pytest.mark.parametrize(("count", "columns"), [(1, 5), (2, 5), (5, 5), (7, 3), (12, 4)])
@pytest.mark.parametrize("log", [False, True])
def test_one_panel_a_subject_and_one_legend(count, columns, log):
    figure = individual_panels([panel(str(k)) for k in range(count)], UNITS, log=log, columns=columns)
    render(figure)
    assert len(figure.axes) == count
    assert {axes.get_yscale() for axes in figure.axes} == {"log" if log else "linear"}
    assert len(legend_labels(figure)) == len(set(legend_labels(figure))) == 7


def test_lowest_panel_of_each_column_has_its_time_ticks():
    figure = individual_panels([panel(str(k)) for k in range(5)], UNITS, columns=3)
    render(figure)
    shown = [any(label.get_visible() and label.get_text() for label in a.get_xticklabels()) for a in figure.axes]
    assert shown == [False, False, True, True, True]


def test_legend_lies_within_the_figure():
    censored = [np.array([True, False, True, False]), np.array([False, False, True, True])]
    figure = individual_panels([panel(str(k), censored=c) for k, c in enumerate(censored)], UNITS)
    render(figure)
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width
    assert len(legend_labels(figure)) == 9


def test_panel_without_truth_samples_or_doses():
    nothing = np.empty(0)
    bare = panel(
        pred=None,
        true=None,
        dose_times=None,
        observed_times=nothing,
        observed_values=nothing,
        seen=nothing.astype(bool),
    )
    figure = individual_panels([bare], UNITS)
    render(figure)
    assert legend_labels(figure) == ["90 % band", "IPRED"]


def test_log_panel_says_what_it_cannot_show():
    figure = individual_panels([panel(observed_values=np.array([0.0, 3.0, -1.0, 2.0]))], UNITS, log=True)
    render(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["2 not above 0, not shown"]


def test_own_axes_follow_the_own_values():
    big = panel("2", ipred=100 * LINE, upper=130 * LINE)
    together = individual_panels([panel("1"), big], UNITS).axes
    apart = individual_panels([panel("1"), big], UNITS, shared=False).axes
    assert together[0].get_ylim() == together[1].get_ylim()
    assert apart[0].get_ylim()[1] < 15 < 900 < apart[1].get_ylim()[1]


def test_panels_refuse_nothing_and_lengths_that_differ():
    with pytest.raises(ValueError, match="at least one subject"):
        individual_panels([], UNITS)
    with pytest.raises(ValueError, match=r"subject 7: true is \(3,\) for 50 times"):
        panel("7", true=np.ones(3))
    with pytest.raises(ValueError, match="seen"):
        panel(seen=np.ones(2, bool))


def test_without_a_likelihood_there_is_no_band():
    nothing = np.full_like(LINE, np.nan)
    figure = individual_panels([panel(lower=nothing, upper=nothing)], UNITS)
    render(figure)
    assert "90 % band" not in legend_labels(figure)


def test_running_median_resists_outliers_and_follows_the_trend():
    x = np.random.default_rng(1).uniform(0, 10, 300)
    y = 2 * x
    y[::20] = 1e6
    position, middle = running_median(x, y)
    # windows are 1.5 wide and one value in twenty lies above: the median moves by a fraction of a unit
    np.testing.assert_allclose(middle, 2 * position, atol=0.3)
    assert len(position) >= 10 and (np.diff(position) > 0).all()
    assert running_median(x[:9], y[:9])[0].size == 0


@pytest.mark.parametrize("latent", [1, 2, 5])
@pytest.mark.parametrize("subjects", [1, 30])
def test_latent_space_keeps_its_distances_to_the_prior_mean(latent, subjects):
    mean = np.random.default_rng(3).normal(size=(subjects, latent))
    figure = latent_space(mean)
    render(figure)
    axes = figure.axes[0]
    points = np.asarray(axes.collections[0].get_offsets())
    distance = np.linalg.norm(mean, axis=1)
    if latent <= 2:
        np.testing.assert_allclose(np.linalg.norm(points, axis=1), distance)
    assert (np.linalg.norm(points, axis=1) <= distance + 1e-12).all()
    assert [patch.get_radius() for patch in axes.patches] == [1, 2]


def test_latent_space_finds_the_direction_of_largest_spread():
    rng = np.random.default_rng(4)
    along = rng.normal(0, 3.0, 100)
    direction = np.array([0.6, 0.0, 0.8])
    mean = np.outer(along, direction) + rng.normal(0, 0.01, (100, 3))
    figure = latent_space(mean, along, "CL (L/h)")
    render(figure)
    points = np.asarray(figure.axes[0].collections[0].get_offsets())
    assert abs(np.corrcoef(points[:, 0], along)[0, 1]) > 0.999
    assert figure.axes[0].get_xlabel() == "principal component 1 (100 %)"
    assert figure.axes[1].get_ylabel() == "CL (L/h)"
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_array(), along)


def test_one_subject_has_no_share_of_spread():
    assert latent_space(np.ones((1, 4))).axes[0].get_xlabel() == "principal component 1"


def test_cloud_away_from_the_prior_stays_away_from_its_circles():
    shift = 3.0
    mean = shift + np.outer(np.linspace(-0.1, 0.1, 9), np.ones(3))  # spread and shift in one direction
    points = np.asarray(latent_space(mean).axes[0].collections[0].get_offsets())
    np.testing.assert_allclose(np.abs(points.mean(axis=0)), [shift * np.sqrt(3), 0.0], atol=1e-12)


def test_latent_space_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="needs subjects"):
        latent_space(np.zeros((0, 2)))
    with pytest.raises(ValueError, match="colours"):
        latent_space(np.zeros((3, 2)), np.zeros(2))


def test_parameter_recovery_is_log_log_with_identity():
    true = {"CL": np.array([1.0, 2.0, 4.0]), "V1": np.array([10.0, 20.0, 30.0]), "unused": np.ones(3)}
    estimated = {name: 1.1 * true[name] for name in ("CL", "V1")}
    bounds = {"CL": (0.5 * true["CL"], 40 * true["CL"])}
    figure = parameter_recovery(true, estimated, bounds, {"CL": "L/h"})
    render(figure)
    clearance, volume = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["CL", "V1"]
    assert (clearance.get_xlabel(), clearance.get_ylabel()) == ("true (L/h)", "estimated (L/h)")
    assert volume.get_xlabel() == "true"
    for axes, name in zip(figure.axes, estimated, strict=True):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        drawn = lines(axes, "subject")[0].get_xydata()
        np.testing.assert_array_equal(drawn, np.column_stack([true[name], estimated[name]]))
    segments = np.array(clearance.collections[0].get_segments())
    np.testing.assert_array_equal(segments[:, :, 1], np.column_stack(bounds["CL"]))
    assert clearance.get_ylim()[1] > 160
    assert not volume.collections


def test_parameter_recovery_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="at least one parameter"):
        parameter_recovery({}, {})
    with pytest.raises(ValueError, match="CL: 2 estimates for 0 true"):
        parameter_recovery({}, {"CL": np.ones(2)})
    with pytest.raises(ValueError, match="positive"):
        parameter_recovery({"CL": np.ones(2)}, {"CL": np.array([1.0, 0.0])})


def test_parameter_recovery_of_one_subject():
    render(parameter_recovery({"CL": np.array([2.0])}, {"CL": np.array([2.0])}))


def test_phase_plane_draws_lines_and_observations():
    angle = np.linspace(0, 6, 100)
    circle = np.column_stack([30 + 20 * np.cos(angle), 20 + 10 * np.sin(angle)])
    figure = phase_plane({"true": circle, "IPRED": circle[:1]}, circle[::10], ("Hare (1000)", "Lynx (1000)"))
    render(figure)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("Hare (1000)", "Lynx (1000)")
    np.testing.assert_array_equal(lines(axes, "true")[0].get_xydata(), circle)
    np.testing.assert_array_equal(lines(axes, "observed")[0].get_xydata(), circle[::10])
    with pytest.raises(ValueError, match=r"true: a phase plane draws \[grid, 2\]"):
        phase_plane({"true": np.ones((5, 3))})


def test_figures_leave_no_global_state():
    before = dict(matplotlib.rcParams)
    render(individual_panels([panel()], UNITS, log=True))
    render(latent_space(np.zeros((2, 3))))
    assert dict(matplotlib.rcParams) == before
    # sys.modules holds pyplot when another test imports it; what matters is that no figure is registered there
    assert not matplotlib._pylab_helpers.Gcf.figs

"""Evaluation of a model on a table: residuals, simulated studies, checks, figures."""

import dataclasses
import io
import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from published import THEOPHYLLINE

from neuralpk import Cohort, Dose, Evaluation, FittedModel, Subject, datasets, evaluate
from neuralpk.cohort_simulation import Design, Population, simulate_cohort
from neuralpk.diagnostics.record_bins import bins_along, bins_over_time
from neuralpk.dynamics import structure
from neuralpk.encoders import SetEncoder
from neuralpk.evaluation import FIGURES, Comparison, evaluating
from neuralpk.evaluation.checks import Check, enough_studies, judge, npde_checks
from neuralpk.evaluation.evaluation_figures import QUANTITIES, fit_figure, vpc_figure
from neuralpk.evaluation.predictive_check import check_frame, corrected, outside
from neuralpk.evaluation.simulated_study import prediction_errors
from neuralpk.objectives import ELBO, SquaredError
from neuralpk.parameters import PopulationParameters
from neuralpk.published_population import PublishedPopulation
from neuralpk.residual_error import CombinedError
from neuralpk.saved_model import SavedPopulation
from neuralpk.scaling import Scaling
from neuralpk.tables import DataError, read_table, to_frame, write_table
from neuralpk.task import LatentTask

INFUSED = {
    "dynamics": {"compartments": 1},
    "typical": {"CL": 8.0, "V1": 40.0},
    "omega": {"CL": 0.3, "V1": 0.2},
    "error": "combined",
    "error_sd": {"a": 0.05, "b": 0.15},
}
TIMES = (1.25, 4.0, 11.5, 13.25, 35.5, 37.25)


def published(plain: dict[str, Any]) -> SavedPopulation:
    return SavedPopulation(Path("pop.yaml"), PublishedPopulation.from_plain(plain))


def infused(seed: int, limit: float = 0.4, subjects: int = 30) -> Cohort:
    """Infusions every 12 h with values below a limit, and an arm."""
    doses = tuple(Dose(12.0 * k, 100.0, duration=1.0) for k in range(4))
    drawn = simulate_cohort(
        structure("one_compartment_infusion"),
        Population(INFUSED["typical"], INFUSED["omega"]),
        Design((doses,), TIMES),
        CombinedError.from_values(a=0.05, b=0.15),
        subjects,
        seed,
    )
    people = []
    for k, one in enumerate(drawn):
        below = one.values < limit
        values, arm = np.where(below, limit, one.values), {"ARM": float(k % 2)}
        people.append(dataclasses.replace(one, values=values, censored=below.astype(int), covariates=arm, truth=None))
    return Cohort(tuple(people))


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return evaluate(
        published(THEOPHYLLINE), datasets.theophylline(), simulations=200, strata=["WT"], likelihood=True, draws=20
    )


@pytest.fixture(scope="module")
def repeated() -> Evaluation:
    return evaluate(published(INFUSED), infused(2), simulations=200, strata=["ARM"], draws=0)


def test_frames(evaluation: Evaluation) -> None:
    records = evaluation.records
    head = ["ID", "TIME", "DVID", "DV", "PRED", "IPRED", "RES", "IRES", "IWRES", "WRES", "CWRES", "NPDE", "TAD"]
    assert list(records)[:13] == head and list(records)[13:] == ["DOSES", "WT"]
    assert len(records) == 132 and (records["RES"] == records["DV"] - records["PRED"]).all()
    assert (records["NPDE"].isna() == (records["PRED"] == 0)).all()  # before the drug has arrived
    assert evaluation.random_effects.shape == (12, 5) and set(evaluation.shrinkage["PARAMETER"]) == {"KA", "CL", "V1"}
    by_name = evaluation.parameters.set_index("PARAMETER")
    assert by_name.loc["CL", "ESTIMATE"] == pytest.approx(2.75) and by_name.loc["CL", "CV"] == pytest.approx(26.8)
    assert by_name.loc["a", "ESTIMATE"] == pytest.approx(0.693)
    errors = evaluation.errors.set_index("PREDICTION")
    assert errors.loc["PRED", "RMSE"] == pytest.approx(np.sqrt(np.mean((records["PRED"] - records["DV"]) ** 2)))
    assert errors.loc["IPRED", "RMSE"] < errors.loc["PRED", "RMSE"]
    assert evaluation.likelihood["OBJECTIVE"] == pytest.approx(360.72, abs=0.05)
    assert evaluation.likelihood["PARAMETERS"] == 7
    assert sum("AIC and BIC count all 7 numbers" in one for one in evaluation.remarks) == 1


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_as_wide_as_a_column_and_has_its_data(evaluation: Evaluation, name: str) -> None:
    assert isinstance(evaluation.data(name), pd.DataFrame) and len(evaluation.data(name))
    figure = evaluation.figure(name)
    assert isinstance(figure, Figure) and figure.get_figwidth() == pytest.approx(85 / 25.4)


@pytest.mark.parametrize("levels", [{"A": "placebo", "B": "drug"}, {"A": 1.0, "B": 2.0}])
def test_patients_with_a_gap_in_a_stratum_are_a_stratum_of_their_own(levels: dict[str, Any], tmp_path: Path) -> None:
    write_table(infused(4, limit=0.0, subjects=9), tmp_path / "t.csv")
    frame = pd.read_csv(tmp_path / "t.csv", dtype={"ID": str})
    patients = frame["ID"].unique().tolist()
    group = {name: levels["AB"[k % 2]] for k, name in enumerate(patients[1:])}
    found = evaluate(
        published(INFUSED), frame.assign(GROUP=frame["ID"].map(group)), simulations=100, strata=["GROUP"], draws=0
    )
    of_first = found.random_effects.set_index("ID")["GROUP"].isna()
    assert of_first.sum() == 1 and of_first[patients[0]]
    assert [name for name, _ in found._strata(found.records, "GROUP")][-1] == "GROUP missing"
    names = [path.name for path in found.write(tmp_path / "out", by=["GROUP"])]
    assert any("GROUP" in name for name in names)


def points(axes: Axes, label: str) -> np.ndarray:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_xydata())


@pytest.mark.parametrize("log", [False, True])
def test_goodness_of_fit_draws_what_the_records_say(evaluation: Evaluation, log: bool) -> None:
    records = evaluation.records
    axes = evaluation.figure("goodness_of_fit", log=log).axes
    pairs = [("PRED", "DV"), ("IPRED", "DV"), ("IPRED", "IWRES"), ("TIME", "IWRES"), ("PRED", "CWRES")]
    named = {"TIME": "Time (h)", "PRED": "PRED (mg/L)", "IPRED": "IPRED (mg/L)", "DV": "DV (mg/L)"}
    for panel, (x, y) in zip(axes, [*pairs, ("TIME", "CWRES")], strict=True):
        known = records[[x, y]].dropna().to_numpy()
        np.testing.assert_array_equal(points(panel, "data"), known)
        assert (panel.get_xlabel(), panel.get_ylabel()) == (named[x], named.get(y, y))
        assert any(line.get_label() == "running median" for line in panel.lines) != (log and y == "DV")
    for panel in axes[:2]:
        assert panel.get_xlim() == panel.get_ylim() and panel.get_xscale() == ("log" if log else "linear")
        np.testing.assert_array_equal(points(panel, "identity")[:, 0], points(panel, "identity")[:, 1])
    bare = fit_figure(records.drop(columns=["CWRES", "NPDE"]).assign(IWRES=np.nan), evaluation.units, 85.0, log)
    assert [panel.get_ylabel() for panel in bare.axes] == ["DV (mg/L)"] * 2  # of a model without a likelihood


def test_npde_are_drawn_as_a_distribution_and_against_time_and_predictions(evaluation: Evaluation) -> None:
    known = evaluation.records[evaluation.records["NPDE"].notna()]
    histogram, quantiles, *against = evaluation.figure("npde").axes
    assert sum(bar.get_width() * bar.get_height() for bar in histogram.patches) == pytest.approx(1.0)
    assert points(histogram, "N(0, 1)")[:, 1].max() == pytest.approx(0.39894, abs=1e-5)
    np.testing.assert_array_equal(points(quantiles, "data")[:, 1], np.sort(known["NPDE"]))
    for panel, x in zip(against, ("TIME", "PRED"), strict=True):
        np.testing.assert_array_equal(points(panel, "data"), known[[x, "NPDE"]].to_numpy())


def test_a_visual_predictive_check_draws_its_frame(evaluation: Evaluation) -> None:
    frame = evaluation.data("vpc")
    (axes,) = evaluation.figure("vpc").axes
    bands = [one for one in axes.collections if one.get_paths()]
    assert len(bands) == 3 and axes.get_ylabel() == "Value (mg/L)"
    for band, name in zip(bands, ("P5", "P50", "P95"), strict=True):
        vertices = band.get_paths()[0].vertices
        assert vertices[:, 1].min() == pytest.approx(frame[f"{name}_LO90"].min())
        assert vertices[:, 1].max() == pytest.approx(frame[f"{name}_HI90"].max())
    np.testing.assert_array_equal(points(axes, "observed 50 %"), frame[["X", "P50_OBSERVED"]].to_numpy())


def test_random_effects_are_drawn_with_their_shrinkage_and_against_covariates(evaluation: Evaluation) -> None:
    effects, shrunk = evaluation.random_effects, evaluation.shrinkage.set_index("PARAMETER")
    for panel, name in zip(evaluation.figure("random_effects").axes, shrunk.index, strict=True):
        assert panel.get_title() == f"shrinkage {shrunk.loc[name, 'SHRINKAGE']:.0f} %"
        peak = points(panel, "population density")[:, 1].max()
        assert peak == pytest.approx(0.39894 / shrunk.loc[name, "OMEGA"], rel=1e-4)
    for panel, name in zip(evaluation.figure("covariates").axes, shrunk.index, strict=True):
        np.testing.assert_array_equal(points(panel, "subject"), effects[["WT", f"ETA_{name}"]].to_numpy())


def test_predictions_that_are_not_positive_have_no_prediction_corrected_check(evaluation: Evaluation) -> None:
    negative = dataclasses.replace(evaluation, records=evaluation.records.assign(PRED=-1.0))
    assert "vpc" in negative.figures and "pcvpc" not in negative.figures
    assert not list(negative.drawn(["pcvpc"]))


@pytest.mark.parametrize("width", [85.0, 180.0])
@pytest.mark.parametrize("name", ["ARM {}", "Renal function: creatinine clearance 60 to 90 mL/min ({})"])
def test_texts_of_three_strata_and_their_shares_below_the_limit_do_not_meet(repeated, name, width) -> None:
    check, points = repeated.check_and_points("pcvpc")
    strata = [name.format(k) for k in range(3)]
    check, points = (pd.concat([one.assign(STRATUM=s) for s in strata]) for one in (check, points))
    figure = vpc_figure(check, points, repeated.units, width, False, "TIME", QUANTITIES["pcvpc"])
    with warnings.catch_warnings(action="error"):  # a layout that has no room for its panels
        figure.canvas.draw()
    assert len(figure.axes) == 6
    texts = [text for axes in figure.axes for text in (axes.title, axes.yaxis.label, axes.xaxis.label)]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert len(boxes) >= 8
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_strata_time_after_dose_and_the_share_below_the_limit(repeated: Evaluation) -> None:
    check = repeated.data("pcvpc", by="ARM", against="TAD")
    assert list(dict.fromkeys(check["STRATUM"])) == ["ARM 0", "ARM 1"] and check["X"].max() < 12
    assert check["N"].sum() == 30 * len(TIMES)
    below = repeated.records["CENS"].mean()
    assert 0.02 < below < 0.3 and (check["BLQ_OBSERVED"] * check["N"]).sum() == pytest.approx(below * check["N"].sum())
    assert repeated.repeats and len(repeated.figure("vpc", by="ARM").axes) == 4
    assert any("imputed" in one for one in repeated.remarks)
    assert repeated.records.loc[repeated.records["CENS"] == 1, "CWRES"].isna().all()


def test_what_cannot_be_shown_is_refused_by_name(evaluation: Evaluation) -> None:
    for name, options, words in (
        ("gof", {}, "no figure 'gof'"),
        ("vpc", {"by": "SEX"}, "no column 'SEX'"),
        ("vpc", {"against": "PRED"}, "TIME or TAD"),
        ("vpc", {"endpoint": 2}, "no endpoint 2"),
        ("individuals", {"subjects": ["77"]}, "no patient 77"),
        ("individuals", {"page": 2}, "pages 1 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluation.figure(name, **options)


def test_a_table_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no column 'ARM' to stratify by"):
        evaluate(published(THEOPHYLLINE), datasets.theophylline(), strata=["ARM"])
    with pytest.raises(ValueError, match="100 or more"):
        evaluate(published(THEOPHYLLINE), datasets.theophylline(), simulations=20)
    effects = [dataclasses.replace(one, endpoints=one.endpoints + 1) for one in datasets.theophylline()]
    with pytest.raises(ValueError, match="endpoint"):
        evaluate(published(THEOPHYLLINE), Cohort(tuple(effects)))


def test_cwres_of_a_linear_model_are_those_of_its_closed_form() -> None:
    text = "parameters: A = 10, S = 0.5\nline' = S\nline(0) = A\noutputs: line"
    plain = {
        "dynamics": {"class_path": "neuralpk.dynamics.Equations", "init_args": {"text": text}},
        "typical": {"A": 10.0, "S": 0.5},
        "omega": {"A": 2.0, "S": 0.2},
        "distributions": {"A": "Normal", "S": "Normal"},
        "error": "additive",
        "error_sd": {"a": 0.7},
    }
    times, generator = np.array([0.0, 1.0, 2.5, 4.0, 7.0]), np.random.default_rng(0)
    design = np.column_stack([np.ones(5), times])
    covariance = design @ np.diag([4.0, 0.04]) @ design.T + 0.49 * np.eye(5)
    values = generator.multivariate_normal(design @ [10.0, 0.5], covariance, 6)
    cohort = Cohort(tuple(Subject(str(k), times, own) for k, own in enumerate(values)))
    found = evaluate(published(plain), cohort, simulations=100, draws=0).records
    root = np.linalg.inv(np.real(scipy.linalg.sqrtm(covariance)))
    expected = (values - design @ [10.0, 0.5]) @ root
    for name in ("CWRES", "WRES"):
        np.testing.assert_allclose(found[name], expected.ravel(), atol=2e-3)
    # in other units, and with a patient who has fewer records, they are the same
    small = plain | {"typical": {"A": 1e-8, "S": 5e-10}, "omega": {"A": 2e-9, "S": 2e-10}, "error_sd": {"a": 7e-10}}
    people = [Subject(str(k), times, own * 1e-9) for k, own in enumerate(values)]
    people.append(Subject("few", times[:2], values[0, :2] * 1e-9))
    found = evaluate(published(small), Cohort(tuple(people)), simulations=100, draws=0).records
    np.testing.assert_allclose(found.loc[found["ID"] != "few", "CWRES"], expected.ravel(), atol=2e-3)


def test_the_rule_fails_a_right_model_at_its_level() -> None:
    generator, failed = np.random.default_rng(1), 0
    for _ in range(400):
        shared = generator.normal(size=200)
        checks = [Check(f"{k}", 1, "", shared + generator.normal(size=200)) for k in range(4)]
        table = judge(checks)
        failed += not table["PASSED"].all()
        assert ((table["STATISTIC"] >= table["LIMIT"]) == ~table["PASSED"]).all()
    assert 0.02 <= failed / 400 <= 0.08


def test_a_verdict_that_no_check_could_deny_is_none(evaluation: Evaluation) -> None:
    generator = np.random.default_rng(5)
    for studies, finite in ((100, False), (enough_studies(10), True)):
        table = judge([Check(f"{k}", 1, "", generator.normal(size=1 + studies)) for k in range(10)])
        assert bool(np.isfinite(table["LIMIT"]).any()) == finite
    assert evaluation.verdict["adequate"] is not None
    none = dataclasses.replace(evaluation, checks=evaluation.checks.assign(LIMIT=np.inf))
    assert none.verdict["adequate"] is None
    assert none.sentence == "No verdict: with 200 simulated studies none of 8 checks could fail; 160 are enough"


def test_names_are_no_formulas_and_long_ones_are_cut(evaluation: Evaluation) -> None:
    names = dict(zip(evaluation.individuals["ID"], ("$\\bad{$", "x" * 200, *"abcdefghij"), strict=True))
    curves, records = (one.assign(ID=one["ID"].map(names)) for one in (evaluation.curves, evaluation.records))
    group = evaluation.random_effects.assign(WT=["$\\no{$", "b"] * 6, ETA_CL=[np.nan, *range(11)])
    records["WT"] = np.where(records["ID"] == "a", "$\\no{$", "b")
    changed = dataclasses.replace(evaluation, curves=curves, records=records, random_effects=group)
    figures = [
        changed.figure(name, by="WT" if name == "vpc" else None) for name in ("individuals", "vpc", "covariates")
    ]
    for figure in figures:
        figure.savefig(io.BytesIO())
    titles = [panel.get_title() for panel in figures[0].axes]
    assert titles[0] == "$\\bad{$" and 10 < len(titles[1]) <= 20
    medians = [line.get_ydata() for line in figures[2].axes[0].lines if line.get_label() == "median"]
    assert medians and np.isfinite(medians).all()


def test_only_the_first_endpoint_has_the_unit_of_the_values(evaluation: Evaluation) -> None:
    other = dataclasses.replace(evaluation, records=evaluation.records.assign(DVID=2))
    for one, label in ((evaluation, "DV (mg/L)"), (other, "DV")):
        assert one.figure("goodness_of_fit").axes[0].get_ylabel() == label


def test_occasions_have_their_random_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(datasets.theophylline()[:4], tmp_path / "t.csv")
    frame = pd.read_csv(tmp_path / "t.csv", dtype={"ID": str})
    frame["OCC"] = np.where(frame["TIME"] > 6, 2, 1)
    changing = THEOPHYLLINE | {"kappa": {"CL": 0.2}, "occasions": "OCC"}
    found = evaluate(published(changing), frame, simulations=100, draws=0)
    assert list(found.occasions["OCC"]) == ["1", "2"] * 4 and found.occasions["KAPPA_CL"].std() > 0.01
    monkeypatch.setattr(Evaluation, "drawn", lambda *_, **__: ())
    assert tmp_path / "occasions.csv" in found.write(tmp_path)


def test_npde_of_the_right_study_are_standard_normal_and_uncorrelated() -> None:
    generator = np.random.default_rng(2)
    mixing = np.array([[1.0, 0, 0], [0.9, 0.5, 0], [0.8, 0.4, 0.3]])
    found, decorrelated = prediction_errors(np.exp(generator.normal(size=(2000, 3)) @ mixing.T))
    assert decorrelated and np.abs(found.mean(axis=0)).max() < 1e-9
    np.testing.assert_allclose(found.std(axis=0), 1.0, atol=0.01)
    assert np.abs(np.corrcoef(found.T) - np.eye(3)).max() < 0.2  # of logarithms that are not linear
    assert not prediction_errors(generator.normal(size=(100, 40)))[1]
    shifted = generator.normal(size=(201, 50))
    shifted[0] += 0.8
    assert not judge(npde_checks(shifted, 1))["PASSED"].all()


def test_a_wrong_structure_fails_and_the_right_one_passes(repeated: Evaluation) -> None:
    right = repeated
    assert right.verdict["adequate"] and right.sentence.startswith("Adequate") and right.npde_p >= 0.05
    two = INFUSED | {
        "dynamics": {"compartments": 2},
        "typical": {"CL": 8.0, "V1": 20.0, "Q": 5.0, "V2": 30.0},
        "omega": {"CL": 0.3, "V1": 0.2},
    }
    wrong = evaluate(published(two), infused(2), simulations=200, strata=["ARM"], draws=0)
    assert not wrong.verdict["adequate"] and wrong.verdict["failed"]
    both = Comparison(right, wrong, ("one", "two"))
    rows = both.table.set_index("QUANTITY")
    assert rows.loc["ADEQUATE", "DIFFERENCE"] == -1 and rows.loc["RMSE PRED", "DIFFERENCE"] > 0
    assert [panel.get_title() for panel in both.figure("pcvpc").axes[:2]] == ["one", "two"]
    assert len(both.figure("fit").axes) == 4
    with pytest.raises(ValueError, match="same values"):
        Comparison(right, dataclasses.replace(wrong, records=wrong.records.iloc[1:]))


def test_bins_keep_nominal_times_together_and_troughs_apart_from_peaks() -> None:
    generator = np.random.default_rng(3)
    nominal = np.repeat([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 12.0, 24.0], 20)
    jittered = nominal * generator.uniform(0.93, 1.07, len(nominal))
    assert (bins_along(jittered) == np.repeat(np.arange(8), 20)).all()
    since, doses = np.tile([0.5, 11.5], 200), np.repeat([1, 2, 3, 4], 100)
    since = since + generator.uniform(-0.4, 0.4, len(since))
    time = 12.0 * (doses - 1) + since
    bins = bins_over_time(time, since, doses)
    assert {*map(bool, np.bincount(bins))} == {True} and bins.max() >= 3
    for k in range(bins.max() + 1):
        assert np.ptp(since[bins == k]) < 1.0, "a trough and a peak in one bin"


def test_percentiles_and_their_bands() -> None:
    values = np.vstack([np.arange(1.0, 21.0), np.tile(np.arange(1.0, 21.0), (99, 1))])
    below = values < 3
    bins = np.repeat([0, 1], 10)
    frame = check_frame(np.arange(20.0), values, below, bins)
    assert np.isnan(frame.loc[0, "P5_OBSERVED"]) and frame.loc[0, "BLQ_OBSERVED"] == pytest.approx(0.2)
    assert frame.loc[1, "P50_OBSERVED"] == frame.loc[1, "P50_MEDIAN"] == 15.0
    assert (outside(np.tile(np.arange(6.0).reshape(1, 3, 2), (50, 1, 1))) == 0).all()
    pred = np.where(bins == 0, 2.0, 5.0)
    np.testing.assert_array_equal(corrected(values, pred, bins), values)


@pytest.mark.filterwarnings("ignore:subject .* (at or below 0 under ProportionalError|residual beyond)")
def test_covariates_outside_the_range_that_was_seen_are_named() -> None:
    seen = datasets.theophylline().with_covariates(["WT"])
    task = LatentTask(structure("one_compartment_oral"), objective=ELBO(), encoder=SetEncoder())
    task.build(Scaling.of(seen))
    heavy = dataclasses.replace(seen[0], id="heavy", covariates={"WT": 120.0})
    found = evaluate(FittedModel(task), Cohort((heavy, *seen[1:4].subjects)), simulations=100, draws=0)
    assert found.unseen_covariates.to_dict("records") == [
        {"COVARIATE": "WT", "ID": "heavy", "VALUE": 120.0, "SEEN_LOW": 54.6, "SEEN_HIGH": 86.4}
    ]
    assert found.verdict["unseen_covariates"] == ["WT"] and "WT" in found.covariates


@pytest.mark.parametrize(("fixed", "learned"), [(False, 2), (True, 0)])
def test_numbers_of_a_population_that_is_known_are_no_parameters(fixed: bool, learned: int) -> None:
    cohort = datasets.theophylline()[:4].with_covariates([])
    known = PopulationParameters({"KA": 1.6, "CL": 2.8, "V1": 32.0}, {"CL": 0.3}, learned=False)
    task = LatentTask(structure("one_compartment_oral"), known, CombinedError(a=0.5, b=0.1, fixed=fixed))
    task.build(Scaling.of(cohort))
    found = evaluate(FittedModel(task), cohort, simulations=100, draws=0, likelihood=True)
    assert found.likelihood["PARAMETERS"] == learned and not any("AIC" in one for one in found.remarks)


def test_a_model_without_a_likelihood_says_what_is_left_out() -> None:
    cohort = datasets.theophylline()[:4].with_covariates([])
    task = LatentTask(structure("one_compartment_oral"), objective=SquaredError(), encoder=SetEncoder())
    task.build(Scaling.of(cohort))
    found = evaluate(FittedModel(task), cohort, simulations=100)
    assert found.verdict["adequate"] is None and found.study is None and "vpc" not in found.figures
    assert found.records[["IWRES", "CWRES", "NPDE"]].isna().all().all()
    assert any("no residual error" in one for one in found.remarks)
    with pytest.raises(ValueError, match="no figure vpc"):
        found.figure("vpc")
    assert len(found.figure("goodness_of_fit").axes) == 2


def test_the_seed_sets_what_is_drawn() -> None:
    first, same, other = (
        evaluate(published(THEOPHYLLINE), datasets.theophylline(), simulations=100, draws=0, seed=seed)
        for seed in (1, 1, 2)
    )
    assert first.records.equals(same.records) and not first.records["NPDE"].equals(other.records["NPDE"])
    torch.testing.assert_close(torch.tensor(first.checks["P"]), torch.tensor(same.checks["P"]))


def test_some_patients_of_a_table_drawn_at_random(tmp_path: Path) -> None:
    cohort = infused(2, subjects=12)
    frame, file = to_frame(cohort), tmp_path / "table.pq"
    frame.to_parquet(file)
    found = [
        evaluate(published(INFUSED), table, simulations=100, draws=0, patients=count, seed=seed)
        for table, count, seed in ((cohort, 4, 1), (file, 4, 1), (cohort, 4, 2), (cohort, 20, 1))
    ]
    one, by_file, other, every = (list(dict.fromkeys(one.records["ID"])) for one in found)
    assert len(one) == 4 and one == by_file and one != other and every == list(cohort.ids)
    np.testing.assert_array_equal(found[0].records["NPDE"], found[1].records["NPDE"])
    assert found[0].remarks[0] == "4 of 12 patients, drawn at random" and found[3].remarks[:1] != found[0].remarks[:1]
    frame.assign(DV=frame["DV"].where(frame["ID"].astype(str).isin(one), np.inf)).to_parquet(file)
    with pytest.raises(DataError):
        read_table(file)
    # nothing but the patients who are judged on is read
    evaluate(published(INFUSED), file, simulations=100, draws=0, patients=4, seed=1)
    with pytest.raises(ValueError, match="patients must be 1 or more"):
        evaluate(published(INFUSED), cohort, patients=0)


def test_a_cluster_of_jittered_times_is_one_bin() -> None:
    generator = np.random.default_rng(4)
    phases = np.repeat([1.0, 4.0, 11.5], 100) + generator.uniform(-0.4, 0.4, 300)
    assert (bins_along(phases) == np.repeat([0, 1, 2], 100)).all()
    assert len(np.unique(bins_along(generator.uniform(0, 24, 300)))) == 8


def test_simulated_studies_that_are_not_held_are_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = infused(1, subjects=4)
    values = 100 * sum(len(subject.times) for subject in cohort)
    monkeypatch.setattr(evaluating, "_MOST_SIMULATED", values - 1)
    with pytest.raises(ValueError, match=f"of 4 patients are {values:,} values, .*--patients 1000"):
        evaluate(published(INFUSED), cohort, simulations=100, draws=0)
    evaluate(published(INFUSED), cohort, simulations=100, draws=0, patients=3)

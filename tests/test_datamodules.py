"""Data modules: the same batches whatever the workers and devices, splits by subject, every option of a cohort."""

from __future__ import annotations

import dataclasses
import itertools
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralpk.cohort import Cohort, written_out
from neuralpk.cohort_batch import CohortBatch, TruthBatch, collate
from neuralpk.datamodules import (
    GlobalBatchSampler,
    SimulatedLotkaVolterraDataModule,
    SimulatedPKDataModule,
    TableDataModule,
    choose_context,
)
from neuralpk.datasets import theophylline
from neuralpk.scaling import Scaling
from neuralpk.tables import DataError, write_table


def same_batch(left: CohortBatch, right: CohortBatch) -> bool:
    """Equal to the last bit, truth aside."""
    pairs = [(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(CohortBatch)]
    return left.ids == right.ids and all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


def values(cohort: Cohort) -> np.ndarray:
    """Every measured value, end to end."""
    return np.concatenate([subject.values for subject in cohort])


def truths(cohort: Cohort) -> dict[str, np.ndarray]:
    """The subjects' own parameters by name."""
    names = cohort[0].truth.parameters
    return {name: np.array([subject.truth.parameters[name] for subject in cohort]) for name in names}


# ---- the same again


def test_one_seed_gives_one_cohort_and_another_seed_another() -> None:
    first, again, other = (values(SimulatedPKDataModule(subjects=6, seed=seed).part("train")) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    options = {"subjects": 7, "batch_size": 3, "passes_per_epoch": 2, "context": "random"}
    alone, helped = (SimulatedPKDataModule(num_workers=n, **options).train_dataloader() for n in (0, 2))
    for epoch in (0, 1):
        alone.sampler.set_epoch(epoch)
        helped.sampler.set_epoch(epoch)
        pairs = list(zip(alone, helped, strict=True))
        assert len(pairs) == 6
        assert all(same_batch(a, b) for a, b in pairs)


def test_a_subject_of_a_small_cohort_is_the_same_in_a_large_one() -> None:
    small, large = (SimulatedPKDataModule(subjects=n, lloq=0.05, jitter=0.1).part("train") for n in (4, 9))
    np.testing.assert_array_equal(values(small), values(large[:4]))


# ---- batches over devices


@pytest.mark.parametrize(
    ("subjects", "batch_size", "devices"), [(8, 4, 2), (7, 7, 2), (7, 3, 2), (11, 4, 3), (5, 2, 3)]
)
def test_the_shares_of_all_devices_make_the_batch_of_one(subjects: int, batch_size: int, devices: int) -> None:
    def batches(rank: int, of: int) -> list[tuple[int, list[int]]]:
        # one device must be asked for the batches that this many devices can share
        sampler = GlobalBatchSampler(subjects, max(batch_size, devices), 2, True, 1, rank, of)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    whole, shares = batches(0, 1), [batches(rank, devices) for rank in range(devices)]
    assert len({len(share) for share in shares}) == 1  # a device with a batch less would leave the others waiting
    together = [(parts[0][0], {i for _, own in parts for i in own}) for parts in zip(*shares, strict=True)]
    assert all(own for share in shares for _, own in share)
    last_is_tiny = 0 < subjects % max(batch_size, devices) < devices
    if not last_is_tiny:
        assert together == [(stream, set(own)) for stream, own in whole]
    for stream in (0, 1):
        seen = [i for share in shares for s, own in share if s == stream for i in own]
        assert sorted(seen) == list(range(subjects))


@pytest.mark.parametrize(("stage", "limit"), [("fit", 1.0), ("fit", 0), ("validate", 1.0), ("test", 1.0)])
def test_more_devices_than_subjects_are_refused_before_the_first_epoch(stage: str, limit: float) -> None:
    data = SimulatedPKDataModule(subjects=8, validation=0.2, test=0.2)
    data.trainer = SimpleNamespace(global_rank=0, world_size=3, limit_val_batches=limit, lightning_module=None)
    if not limit:
        data.setup(stage)  # five subjects are trained on, and none is validated
        return
    named = {"fit": "val", "validate": "val", "test": "test"}[stage]
    with pytest.raises(ValueError, match=rf"[12] {named} subjects for 3 devices; use at most one device a subject"):
        data.setup(stage)


def test_a_last_batch_too_small_for_the_devices_joins_the_one_before() -> None:
    sampler = GlobalBatchSampler(7, 3, 1, False, 0, 0, 2)
    assert [len(own) for _, own in sampler] == [2, 2]  # 3 and 3 + 1 subjects over two devices
    assert [len(own) for _, own in GlobalBatchSampler(7, 3, 1, False, 0, 0, 1)] == [3, 3, 1]


def test_every_pass_and_every_epoch_has_its_own_order() -> None:
    sampler = GlobalBatchSampler(20, 20, 2, True, 0, 0, 1)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders += [tuple(own) for _, own in sampler]
    assert orders[:2] == orders[4:]
    assert len(set(orders)) == 4
    assert [own for _, own in GlobalBatchSampler(4, 2, 1, False, 0, 0, 1)] == [[0, 1], [2, 3]]


# ---- what the encoder sees


@pytest.fixture(scope="module")
def ragged() -> CohortBatch:
    """Subjects with 0 to 5 observations, the third of one with no measured value."""
    cohort = SimulatedPKDataModule(subjects=12, samples=[0, 5]).part("train")
    subjects = list(cohort)
    longest = max(range(12), key=lambda i: len(subjects[i].times))
    gap = subjects[longest].values.copy()
    gap[2] = np.nan
    subjects[longest] = dataclasses.replace(subjects[longest], values=gap)
    batch = collate(Cohort(tuple(subjects)))
    assert {0, 4} <= set(batch.observed.sum(1).tolist())
    return batch


def test_all_is_seen_and_all_is_scored(ragged: CohortBatch) -> None:
    batch = choose_context(ragged, "all", 3, 0, 0)
    assert torch.equal(batch.context, ragged.observed)
    assert torch.equal(batch.target, ragged.observed)


def test_first_shows_the_first_and_scores_the_rest(ragged: CohortBatch) -> None:
    batch = choose_context(ragged, "first", 2, 0, 0)
    assert torch.equal(batch.context.sum(1), ragged.observed.sum(1).clamp(max=2))
    assert torch.equal(batch.context | batch.target, ragged.observed)
    assert not bool((batch.context & batch.target).any())
    for seen, scored, time in zip(batch.context, batch.target, batch.time, strict=True):
        assert not scored.any() or time[seen].max() <= time[scored].min()


def test_random_shows_one_or_more_and_scores_everything(ragged: CohortBatch) -> None:
    counts = set()
    for stream in range(60):
        batch = choose_context(ragged, "random", 3, 0, stream)
        assert not bool((batch.context & ~ragged.observed).any())
        assert torch.equal(batch.context.any(1), ragged.observed.any(1))
        assert torch.equal(batch.target, ragged.observed)
        counts |= set(zip(ragged.observed.sum(1).tolist(), batch.context.sum(1).tolist(), strict=True))
    assert {(4, seen) for seen in (1, 2, 3, 4)} <= counts


def test_a_random_choice_does_not_depend_on_the_company() -> None:
    cohort = SimulatedPKDataModule(subjects=8, samples=[2, 6]).part("train")
    whole = choose_context(collate(cohort), "random", 3, 5, 9)
    for few in ([3], [6, 1]):
        part = choose_context(collate(cohort[few], index=few), "random", 3, 5, 9)
        for row, subject in enumerate(few):
            n = len(cohort[subject].times)
            assert part.context[row, :n].tolist() == whole.context[subject, :n].tolist()


def test_the_evaluation_has_a_context_of_its_own() -> None:
    data = SimulatedPKDataModule(subjects=4, context="random", evaluation_context="first", context_size=2)
    (training,), (validation,) = data.train_dataloader(), data.val_dataloader()
    assert torch.equal(training.target, training.observed)
    assert validation.context.sum(1).tolist() == [2] * 4
    assert validation.target.sum(1).tolist() == [6] * 4


# ---- splits


def test_shares_are_disjoint_by_subject_and_have_their_size() -> None:
    data = SimulatedPKDataModule(subjects=20, validation=0.2, test=0.3)
    parts = [set(data.part(name).ids) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [10, 4, 6]
    assert not any(a & b for a, b in itertools.combinations(parts, 2))
    assert set.union(*parts) == {str(i) for i in range(1, 21)}


def test_the_split_follows_the_seed() -> None:
    held = [SimulatedPKDataModule(subjects=20, test=0.3, seed=seed).part("test").ids for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]


def test_without_a_share_the_training_subjects_are_measured() -> None:
    data = SimulatedPKDataModule(subjects=5)
    assert data.part("val").ids == data.part("test").ids == data.part("train").ids
    held = SimulatedPKDataModule(subjects=10, validation=0.2)
    assert held.part("test").ids == held.part("val").ids


def test_further_test_subjects_are_new_ones_of_the_same_population() -> None:
    data = SimulatedPKDataModule(subjects=5, test_subjects=3)
    assert data.part("train").ids == ("1", "2", "3", "4", "5")
    assert data.part("test").ids == ("6", "7", "8")


def test_the_first_part_that_is_asked_for_of_a_forecast_is_that_part() -> None:
    data = SimulatedPKDataModule(subjects=10, validation=0.2, test_subjects=3, forecast=5.0)
    assert data.part("test").ids == ("11", "12", "13")
    assert len(data.part("val")) == 2 and len(data.part("train")) == 8


def test_folds_leave_every_subject_out_once() -> None:
    out = []
    for fold in range(5):
        data = TableDataModule("theophylline", folds=5, fold=fold)
        held, train = data.part("test").ids, data.part("train").ids
        assert not set(held) & set(train)
        assert len(held) + len(train) == 12
        assert data.part("val").ids == train  # the subjects left out guide nothing
        out += held
    assert sorted(out) == sorted(theophylline().ids)


# ---- the truth and the scaling


def test_training_batches_carry_no_truth_and_test_batches_do() -> None:
    data = SimulatedPKDataModule(subjects=4, test_subjects=2)
    (training,), (validation,), (test,) = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert training.truth is None
    assert isinstance(validation.truth, TruthBatch)
    assert isinstance(test.truth, TruthBatch)
    assert data.part("train")[0].truth is not None


def test_the_scaling_is_plain_and_measures_the_training_subjects_alone() -> None:
    data = SimulatedPKDataModule(subjects=12, test=0.5, covariates={"WT": [40.0, 100.0], "SEX": 0.5})
    scaling = data.scaling()
    assert scaling == Scaling.of(data.part("train")) != Scaling.of(data.make_cohort())
    assert Scaling.from_plain(json.loads(json.dumps(scaling.plain()))) == scaling
    assert set(scaling.covariates) == {"WT", "SEX"}


# ---- options of the simulated cohort

ONE = {"CL": 4.0, "V1": 70.0}
KINETICS = {
    "one compartment": ({"compartments": 1, "typical": ONE}, ("central",)),
    "three compartments": (
        {"compartments": 3, "typical": ONE | {"Q": 4.0, "V2": 50.0, "Q3": 1.0, "V3": 80.0}},
        ("central", "peripheral", "peripheral2"),
    ),
    "first order": (
        {"compartments": 1, "absorption": "first_order", "typical": ONE | {"KA": 1.0}},
        ("depot", "central"),
    ),
    "transit": (
        {"compartments": 1, "absorption": "transit", "transits": 2, "typical": ONE | {"KTR": 2.0}},
        ("depot", "central", "transit1", "transit2"),
    ),
    "michaelis menten": (
        {"compartments": 1, "elimination": "michaelis_menten", "typical": {"VMAX": 6.0, "KM": 1.0, "V1": 70.0}},
        ("central",),
    ),
    "time varying": (
        {"compartments": 1, "elimination": "time_varying", "typical": ONE | {"CLR": 0.5, "KCL": 0.05}},
        ("central",),
    ),
}


@pytest.mark.parametrize(("options", "states"), KINETICS.values(), ids=KINETICS)
def test_every_kinetics_can_be_simulated(options: dict, states: tuple[str, ...]) -> None:
    data = SimulatedPKDataModule(
        subjects=3, times=[1.0, 6.0, 24.0, 48.0], samples=None, omega={}, doses=[100.0], **options
    )
    subject = data.part("train")[0]
    assert data.dynamics.states == states
    line = subject.truth.line[:, 0]
    assert (line >= -1e-9).all()
    assert line.max() > 0.1
    reference = SimulatedPKDataModule(
        subjects=1, typical=ONE, compartments=1, times=[1.0, 48.0], samples=2, omega={}, doses=[100.0]
    )
    if options["typical"] != ONE:
        other = np.interp(10.0, reference.part("train")[0].truth.times, reference.part("train")[0].truth.line[:, 0])
        assert abs(np.interp(10.0, subject.truth.times, line) / other - 1) > 0.02


def test_an_oral_dose_rises_and_a_lag_delays_it() -> None:
    oral = {
        "compartments": 1,
        "absorption": "first_order",
        "omega": {},
        "times": [0.5, 24.0],
        "samples": 2,
        "doses": [100.0],
    }
    plain = SimulatedPKDataModule(subjects=1, typical=ONE | {"KA": 1.0}, **oral).part("train")[0].truth
    late = (
        SimulatedPKDataModule(subjects=1, typical=ONE | {"KA": 1.0, "LAG": 2.0}, lag=True, **oral)
        .part("train")[0]
        .truth
    )
    assert 0 < int(np.argmax(plain.line)) < 100
    before = late.times < 2.0
    assert np.abs(late.line[before]).max() == 0.0
    shifted = np.interp(late.times[~before] - 2.0, plain.times, plain.line[:, 0])
    later = late.times[~before] > 3.0  # the grid does not resolve the start of the rise
    np.testing.assert_allclose(late.line[~before, 0][later], shifted[later], rtol=5e-3)


def test_repeated_doses_infusions_and_steady_state_reach_the_records() -> None:
    common = {"subjects": 1, "omega": {}, "doses": [50.0], "times": [0.5, 60.0], "samples": 2}
    once = SimulatedPKDataModule(**common).part("train")[0]
    thrice = SimulatedPKDataModule(repeats=3, interval=12.0, **common).part("train")[0]
    slow = SimulatedPKDataModule(infusion=2.0, **common).part("train")[0]
    steady = SimulatedPKDataModule(steady_state=True, interval=12.0, **common).part("train")[0]
    assert [dose.time for dose in written_out(thrice.doses)] == [0.0, 12.0, 24.0]
    assert slow.doses[0].duration == 2.0
    assert steady.doses[0].steady_state == 1
    at = {name: np.interp([1.0, 30.0], s.truth.times, s.truth.line[:, 0]) for name, s in
          {"once": once, "thrice": thrice, "slow": slow, "steady": steady}.items()}  # fmt: skip
    assert at["thrice"][0] == at["once"][0]
    assert at["thrice"][1] > 1.5 * at["once"][1]
    assert at["slow"][0] == pytest.approx(at["once"][0] / 2, rel=0.1)  # half of it is in after one hour of two
    assert at["steady"][0] > 1.3 * at["once"][0]


def test_doses_are_dealt_in_turn() -> None:
    cohort = SimulatedPKDataModule(subjects=5, doses=[10.0, 20.0]).part("train")
    assert [subject.doses[0].amount for subject in cohort] == [10.0, 20.0, 10.0, 20.0, 10.0]


def test_variability_as_percent_as_omega_and_as_a_matrix() -> None:
    common = {
        "subjects": 400,
        "compartments": 1,
        "typical": ONE,
        "times": [1.0, 24.0],
        "samples": 1,
        "grid": [1, 24, 3],
    }
    in_percent = truths(SimulatedPKDataModule(cv={"CL": 50.0}, **common).part("train"))
    as_omega = truths(SimulatedPKDataModule(omega={"CL": 0.472380727}, **common).part("train"))  # sqrt(log(1 + 0.5²))
    full = truths(SimulatedPKDataModule(omega=[[0.25, 0.2], [0.2, 0.25]], **common).part("train"))
    np.testing.assert_allclose(in_percent["CL"], as_omega["CL"], rtol=1e-6)
    assert in_percent["V1"] == pytest.approx(70.0)
    # 400 draws: standard errors of a standard deviation and of a correlation of 0.8 are 0.017 and 0.018
    assert np.log(in_percent["CL"]).std() == pytest.approx(0.472, abs=0.06)
    assert np.corrcoef(np.log(full["CL"]), np.log(full["V1"]))[0, 1] == pytest.approx(0.8, abs=0.06)
    varied = truths(SimulatedPKDataModule(**common).part("train"))
    assert np.log(varied["V1"]).std() == pytest.approx(0.3, abs=0.04)


def test_covariates_act_by_their_exponent_and_their_factor() -> None:
    data = SimulatedPKDataModule(
        subjects=40,
        omega={},
        covariates={"WT": [40.0, 100.0], "SEX": 0.5},
        effects={"CL~WT": 0.75, "V1~SEX": 0.5},
    )
    cohort = data.part("train")
    weight, sex = (np.array([subject.covariates[name] for subject in cohort]) for name in ("WT", "SEX"))
    assert weight.min() >= 40
    assert weight.max() <= 100
    assert weight.std() > 10
    assert set(sex) == {0.0, 1.0}
    np.testing.assert_allclose(truths(cohort)["CL"], 4.0 * (weight / 70.0) ** 0.75)
    np.testing.assert_allclose(truths(cohort)["V1"], 70.0 * np.exp(0.5 * sex))


def test_values_below_the_limit_of_quantification_are_censored_at_it() -> None:
    free, limited = (SimulatedPKDataModule(subjects=10, lloq=lloq).part("train") for lloq in (None, 0.2))
    below = values(free) < 0.2
    censored = np.concatenate([subject.censored for subject in limited])
    assert 0 < below.sum() < below.size
    np.testing.assert_array_equal(censored == 1, below)
    assert (values(limited)[below] == 0.2).all()
    np.testing.assert_array_equal(values(limited)[~below], values(free)[~below])


def test_sampling_times_are_the_plan_the_plan_shaken_or_anywhere_between() -> None:
    plan = {"subjects": 20, "times": [1.0, 5.0, 9.0], "samples": 2}
    planned, shaken, between = (
        np.concatenate([subject.times for subject in SimulatedPKDataModule(**plan, **options).part("train")])
        for options in ({}, {"jitter": 0.1}, {"continuous": True})
    )
    distance = np.abs(shaken[:, None] - [1.0, 5.0, 9.0]).min(1)
    assert set(planned) == {1.0, 5.0, 9.0}
    assert 0.02 < distance.mean() < 0.2
    assert between.min() >= 1.0
    assert between.max() <= 9.0
    assert len(set(between.tolist())) == 40


def test_a_range_of_samples_draws_how_many_each_keeps() -> None:
    counts = {len(subject.times) for subject in SimulatedPKDataModule(subjects=60, samples=[2, 5]).part("train")}
    assert counts == {2, 3, 4, 5}
    everything = SimulatedPKDataModule(subjects=2, samples=None, times=[1.0, 2.0, 3.0]).part("train")
    assert [len(subject.times) for subject in everything] == [3, 3]


@pytest.mark.parametrize(
    ("error", "sd"),
    [
        ("additive", {"a": 0.1}),
        ("proportional", {"b": 0.1}),
        ("combined", {"a": 0.1, "b": 0.1}),
        ("log_normal", {"b": 0.1}),
    ],
)
def test_the_error_model_and_its_size_reach_the_values(error: str, sd: dict[str, float]) -> None:
    exact, noisy = (
        values(SimulatedPKDataModule(subjects=100, omega={}, doses=[60.0], error=error, error_sd=size).part("train"))
        for size in (dict.fromkeys(sd, 1e-9), sd)
    )
    size = {"additive": 0.1, "proportional": 0.1 * exact, "combined": np.hypot(0.1, 0.1 * exact)}
    scatter = np.log(noisy / exact) / 0.1 if error == "log_normal" else (noisy - exact) / size[error]
    assert scatter.std() == pytest.approx(1.0, abs=0.1)  # 800 draws: standard error 0.025
    assert abs(scatter.mean()) < 0.15


def test_the_true_line_stands_on_the_grid_that_was_asked_for() -> None:
    truth = SimulatedPKDataModule(subjects=1, grid=[0.0, 48.0, 7]).part("train")[0].truth
    np.testing.assert_allclose(truth.times, np.linspace(0.0, 48.0, 7))
    assert truth.line.shape == (7, 1)


def test_typical_lines_are_those_of_the_typical_patient_under_each_ones_dose() -> None:
    data = SimulatedPKDataModule(subjects=6, test_subjects=2, doses=[10.0, 30.0])
    lines = data.typical_lines(data.part("test"))
    assert lines.shape == (2, 200, 1)
    for line, dose in zip(lines, (10.0, 30.0), strict=True):  # subjects 7 and 8: the first dose and the second
        lone = SimulatedPKDataModule(subjects=1, omega={}, doses=[dose]).part("train")[0].truth
        np.testing.assert_allclose(line, lone.line, rtol=1e-6)


def test_typical_lines_follow_each_patients_covariates() -> None:
    options = {"subjects": 4, "covariates": {"WT": [40.0, 100.0]}, "effects": {"CL~WT": 2.0}}
    data = SimulatedPKDataModule(**options)
    same = SimulatedPKDataModule(omega={}, **options).part("train")
    lines = data.typical_lines(data.part("train"))
    np.testing.assert_allclose(lines, np.stack([subject.truth.line for subject in same]), rtol=1e-9)


def test_lotka_volterra_observes_two_species_without_doses() -> None:
    data = SimulatedLotkaVolterraDataModule(subjects=3, test_subjects=2, samples=5)
    subject = data.part("train")[0]
    assert subject.doses == ()
    assert subject.endpoints.tolist() == [1, 2] * 5
    assert subject.truth.line.shape == (200, 2)
    assert len(data.scaling().value) == 2
    assert {"alpha", "beta", "gamma", "delta", "prey0", "predator0"} <= set(subject.truth.parameters)
    assert data.part("test").ids == ("4", "5")


# ---- tables


def test_a_data_set_by_name_and_the_same_from_its_file(tmp_path) -> None:
    write_table(theophylline(), tmp_path / "theo.csv")
    named, read = (TableDataModule(name, covariates="WT") for name in ("theophylline", str(tmp_path / "theo.csv")))
    np.testing.assert_array_equal(values(named.part("train")), values(read.part("train")))
    assert named.scaling() == read.scaling()
    assert named.scaling().covariates.keys() == {"WT"}
    assert named.typical_lines(named.part("train")) is None


def test_columns_covariates_and_units_of_a_table(tmp_path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("PATIENT,HOUR,AMT,DV,AGE,WT\n7,0,100,.,30,70\n7,1,.,5,30,70\n8,0,100,.,40,80\n8,2,.,4,40,80\n")
    columns = {"ID": "PATIENT", "TIME": "HOUR"}
    data = TableDataModule(str(path), columns=columns, covariates=["WT"], units=["h", "ug", "ng/mL"])
    cohort = data.part("train")
    assert cohort.ids == ("7", "8")
    assert cohort.covariate_names == ("WT",)
    assert cohort.units.value == "ng/mL"
    as_text = "ID=PATIENT,TIME=HOUR"
    assert TableDataModule(str(path), as_text).part("train").covariate_names == ()
    assert TableDataModule(str(path), as_text, "all").part("train").covariate_names == ("AGE", "WT")
    left = TableDataModule(str(path), as_text, ignore="AGE == 30", map="WT:80=.", covariates="AGE").part("train")
    assert left.ids == ("8",)
    assert TableDataModule("theophylline").part("train").covariate_names == ()
    assert TableDataModule("theophylline", covariates="all").part("train").covariate_names == ("WT",)
    with pytest.raises(ValueError, match="data set of the package"):
        TableDataModule("theophylline", ignore="ID == 1").part("train")
    assert TableDataModule("theophylline", units=["min", "g", "g/L"]).part("train").units.time == "min"


# ---- at the door


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0.6, "test": 0.4}, "leave subjects to train on"),
        ({"validation": -0.1}, "leave subjects to train on"),
        ({"error": "gaussian"}, "error is one of additive"),
        ({"cv": {"CL": 30.0}, "omega": {"CL": 0.3}}, "not both"),
        ({"compartments": 4}, "compartments must be 1, 2 or 3"),
        ({"absorption": "rectal"}, "absorption is one of"),
        ({"samples": 50}, "50 samples from 19 candidate times"),
        ({"effects": {"CL~WT": 0.75}}, "WT"),
        ({"omega": [[0.1]]}, "4 × 4"),
        ({"repeats": 3}, "need an interval"),
        ({"effects": {"CL": 0.75}}, "PARAMETER~COVARIATE"),
        ({"context": "last"}, "context is one of"),
        ({"batch_size": 0}, "batch_size"),
        ({"passes_per_epoch": 0}, "passes_per_epoch"),
        ({"subjects": 0}, "subjects"),
    ],
)
def test_bad_options_of_a_cohort_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimulatedPKDataModule(**options)


def test_parameters_of_another_model_are_refused() -> None:
    with pytest.raises(ValueError, match="KA"):
        SimulatedPKDataModule(subjects=2, absorption="first_order").part("train")


def test_errors_take_their_own_standard_deviations() -> None:
    with pytest.raises(ValueError, match="takes positive"):
        SimulatedPKDataModule(subjects=2, error="additive", error_sd={"b": 0.2}).part("train")


@pytest.mark.parametrize("fold", [-1, 3])
def test_a_fold_outside_its_range_is_refused(fold: int) -> None:
    with pytest.raises(ValueError, match="from 0 to 2"):
        TableDataModule("theophylline", folds=3, fold=fold)


def test_more_folds_than_subjects_are_refused() -> None:
    with pytest.raises(ValueError, match="6 subjects"):
        TableDataModule("indomethacin", folds=7, fold=6).part("test")


def test_a_missing_or_faulty_table_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        TableDataModule(str(tmp_path / "none.csv")).part("train")
    bad = tmp_path / "bad.csv"
    bad.write_text("ID,TIME,AMT,DV\n1,0,100,.\n1,2,.,5\n1,1,.,4\n")
    with pytest.raises(DataError, match="NPK-D16"):
        TableDataModule(str(bad)).part("train")


def test_a_simulation_says_nothing_unasked() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SimulatedPKDataModule(subjects=3).part("train")

"""Values that a likelihood cannot bear, and subjects that do not belong to the population."""

import warnings

import numpy as np
import pytest

from neuralpk import PopulationModel, fit
from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.datamodules import CohortDataModule
from neuralpk.dynamics import Equations
from neuralpk.individual_estimates import estimate_individuals
from neuralpk.published_population import PublishedPopulation
from neuralpk.scaling import Scaling
from neuralpk.value_checks import bearable, refuse_without_doses

POPULATION = {
    "dynamics": {"compartments": 1}, "typical": {"CL": 4.0, "V1": 25.0}, "cv": {"CL": 30.0, "V1": 20.0},
    "error": "log_normal", "error_sd": {"b": 0.2},
}  # fmt: skip


def model_of(error="log_normal"):
    sds = {"additive": {"a": 0.2}, "combined": {"a": 0.1, "b": 0.2}}.get(error, {"b": 0.2})
    plain = POPULATION | {"error": error, "error_sd": sds}
    return PublishedPopulation.from_plain(plain).model(Cohort((subject([1.0, 4.0], [2.0, 1.5]),)))


def subject(times, values, dose=0.5, **more):
    return Subject("7", times, values, (Dose(dose, 100.0),), **more)


def test_a_zero_before_the_first_dose_is_left_out_and_counted_under_a_log_normal_error():
    cohort = Cohort((subject([0.0, 0.2, 1.0, 4.0], [0.0, -0.1, 2.0, 1.5]),))
    with pytest.warns(UserWarning, match=r"subject 7 \(sample 1, TIME 0, DV 0\), .* left out: before the first dose"):
        left = bearable(model_of(), cohort)
    np.testing.assert_array_equal(left[0].values, [np.nan, np.nan, 2.0, 1.5])


def test_a_zero_after_a_dose_is_refused_by_subject_and_record_unless_it_is_censored():
    with pytest.raises(ValueError, match=r"subject 7 \(sample 2, TIME 4, DV 0\): LogNormalError has no density"):
        bearable(model_of(), Cohort((subject([1.0, 4.0], [2.0, 0.0]),)))
    kept = Cohort((subject([1.0, 4.0], [2.0, 0.0], censored=[0, 1]),))
    assert bearable(model_of(), kept) is not None


@pytest.mark.parametrize(
    ("times", "values", "said"),
    [
        ([1.0, 4.0], [2.0, 0.0], "DV at or below 0 under ProportionalError"),
        ([0.0, 4.0], [2.0, 1.0], "before the first dose"),
    ],
)
def test_what_a_proportional_error_hardly_bears_is_said(times, values, said):
    cohort = Cohort((subject(times, values),))
    with pytest.warns(UserWarning, match=said):
        bearable(model_of("proportional"), cohort)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bearable(model_of("combined"), cohort) is cohort


def test_a_training_is_restricted_in_every_part_once():
    class Given(CohortDataModule):
        def make_cohort(self):
            return Cohort((subject([0.0, 4.0], [0.0, 1.0]),))

    data = Given()
    with pytest.warns(UserWarning, match="left out") as caught:
        data.restrict(lambda cohort: bearable(model_of(), cohort))
    assert len(caught) == 1
    assert data.part("train") is data.part("val")
    assert np.isnan(data.part("train")[0].values[0])


def test_residuals_and_subjects_that_are_far_away_are_named():
    times = np.linspace(1.0, 12.0, 23)
    typical = 100 / 25 * np.exp(-4 / 25 * (times - 0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate_individuals(model_of("additive"), Cohort((subject(times, typical),)), draws=0)
    with pytest.warns(UserWarning, match=r"subject 7 \(TIME 4, DV 6, \d+ sd\): residual beyond 6"):
        one = Cohort((subject(times, np.where(times == 4.0, 6.0, typical)),))
        estimate_individuals(model_of("additive"), one, draws=0)
    with pytest.warns(UserWarning, match=r"subject 7 .*omega\).*more than 5 standard deviations from the population"):
        estimate_individuals(model_of("proportional"), Cohort((subject(times, 1000 * typical),)), draws=0)


def test_a_fit_needs_a_dose_where_the_model_predicts_nothing_without():
    nothing = Subject("8", [1.0, 4.0], [2.0, 1.5])
    with pytest.raises(ValueError, match="no subject has a dose, and without one CompartmentModel predicts 0"):
        refuse_without_doses(model_of(), Cohort((nothing,)))
    refuse_without_doses(model_of(), Cohort((nothing, subject([1.0, 4.0], [2.0, 1.5]))))
    turnover = PopulationModel(Equations("parameters: KIN = 1, KOUT = 1\nR' = KIN - KOUT*R\noutputs: R"))
    refuse_without_doses(turnover.build(Scaling.of(Cohort((nothing,)))), Cohort((nothing,)))
    with pytest.raises(ValueError, match="no subject has a dose"):
        fit(Cohort((nothing,)), "one_compartment_bolus", progress=False)

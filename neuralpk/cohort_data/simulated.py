"""Simulated cohorts: pharmacokinetics, predator and prey, epidemics."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from neuralpk.cohort import Cohort, Dose, Units
from neuralpk.cohort_data.base import CohortData, FurtherSubjects, Part
from neuralpk.cohort_simulation import (
    Design,
    Population,
    PopulationPrior,
    omega_from_cv,
    simulate_batches,
    simulate_cohort,
    simulate_subjects,
    subjects_of,
)
from neuralpk.dynamics import (
    SIR,
    Absorption,
    CompartmentModel,
    Dynamics,
    Elimination,
    FluctuatingClearance,
    LotkaVolterra,
    StochasticLotkaVolterra,
)
from neuralpk.residual_error import ResidualError, error_class
from neuralpk.tables.batchwise_writing import batch_frame
from neuralpk.training_data_provenance import Provenance

if TYPE_CHECKING:
    import pandas as pd


class SimulatedData(CohortData):
    """A cohort from a population, a design, a dynamics and an error model.

    Args:
        subjects: how many.
        test_subjects: further subjects of the same population for the test, beside any held out; 0 for none.
        error: additive, proportional, combined or log_normal.
        error_sd: its standard deviations.
        streamed: further subjects for the training, of any number: each is simulated when its batch is asked for, and
            not kept. `subjects` give the magnitudes, the validation and the figures.
        options: of `CohortData`.
    """

    dynamics: Dynamics
    population: Population
    design: Design
    units: Units

    @abstractmethod
    def __init__(
        self,
        subjects: int,
        test_subjects: int,
        error: str,
        error_sd: dict[str, float],
        streamed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        error_class(error)
        if streamed < 0:
            raise ValueError(f"streamed must be 0 or more, not {streamed}")
        if subjects < 1 or test_subjects < 0:
            raise ValueError(f"subjects must be 1 or more and test_subjects 0 or more: {subjects}, {test_subjects}")
        self.subjects, self.test_subjects = subjects, test_subjects
        self.error, self.error_sd = error, error_sd
        self._streamed = streamed

    def further_subjects(self) -> FurtherSubjects | None:
        if not self._streamed:
            return None
        error, first = self._residual_error(self.design), self.subjects + self.test_subjects
        return _SimulatedSubjects(
            self.dynamics, self.population, self.design, error, self.seed, self.units, first, self._streamed
        )

    def _simulate(self, population: Population, design: Design, subjects: int, dynamics: Dynamics) -> Cohort:
        error = self._residual_error(design)
        return simulate_cohort(dynamics, population, design, error, subjects, self.seed, self.units)

    def _residual_error(self, design: Design) -> ResidualError:
        return error_class(self.error).from_values(endpoints=len(set(design.endpoints)), **self.error_sd)

    def frames(self, size: int = 10_000) -> Iterator[pd.DataFrame]:
        """The event table of the cohort, `size` subjects at a time, whatever their number."""
        error = self._residual_error(self.design)
        number = self.subjects + self.test_subjects
        names = sorted(self.population.covariates)
        for batch in simulate_batches(self.dynamics, self.population, self.design, error, number, self.seed, size):
            design = self.design
            yield batch_frame(batch, design.regimens, names, design.lloq is not None, design.occasions)

    def make_cohort(self) -> Cohort:
        return self._simulate(self.population, self.design, self.subjects + self.test_subjects, self.dynamics)

    def split(self, cohort: Cohort) -> dict[Part, Cohort]:
        parts = super().split(cohort[: self.subjects])
        return parts | ({"test": cohort[self.subjects :]} if self.test_subjects else {})

    def typical_lines(self, cohort: Cohort) -> np.ndarray | None:
        typical = dataclasses.replace(self.population, omega={}, kappa={}, prior=PopulationPrior())
        # without its noise: a path drawn by the same random numbers would be that of the subject itself
        dynamics = (
            self.dynamics.inner
            if isinstance(self.dynamics, FluctuatingClearance | StochasticLotkaVolterra)
            else self.dynamics
        )
        lines = self._simulate(typical, self.design, max(int(i) for i in cohort.ids), dynamics)
        return np.stack([truth.line for i in cohort.ids if (truth := lines[int(i) - 1].truth) is not None])


@dataclasses.dataclass(frozen=True)
class _SimulatedSubjects(FurtherSubjects):
    """Subjects of a simulated cohort from its number `first` on."""

    dynamics: Dynamics
    population: Population
    design: Design
    error: ResidualError
    seed: int
    units: Units
    first: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __call__(self, numbers: Sequence[int]) -> tuple[list[int], Cohort]:
        index = self.first + torch.tensor(numbers)
        batch = simulate_subjects(self.dynamics, self.population, self.design, self.error, index, self.seed)
        return list(numbers), Cohort(tuple(subjects_of(batch, self.population, self.design)), self.units)


_TIMES = (0.25, 0.5, 0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 36, 48, 71.99)


class SimulatedPKData(SimulatedData):
    """A simulated pharmacokinetic cohort; the default is the talk's: 50 patients, two compartments, an IV bolus.

    Args:
        subjects: number of patients.
        test_subjects: further patients for the test.
        compartments: 1, 2 or 3.
        absorption: ``none`` (into the central compartment), ``first_order`` or ``transit`` (`CompartmentModel`).
        elimination: ``linear``, ``michaelis_menten`` or ``time_varying`` (`CompartmentModel`).
        transits: transit compartments of the absorption ``transit``.
        lag: a lag time before a dose arrives.
        typical: typical value of every parameter (L, h, mg).
        cv: between-subject variability in percent by parameter, CV% = 100·sqrt(exp(omega²) − 1).
        omega: standard deviation of eta by parameter, or the full covariance matrix in the order of `typical`; given
            instead of `cv`.
        populations: for pre-training, factors within which `typical`, `omega` and `error` of a population lie
            (`PopulationPrior`); every patient then comes from a population of its own.
        covariates: name to [low, high], or to the probability of a 1.
        effects: ``PARAMETER~COVARIATE`` to its exponent (`Population`).
        doses: amounts in mg; patient i gets one of them in turn.
        repeats: number of doses, `interval` hours apart (ADDL = repeats − 1).
        interval: hours between doses (II).
        infusion: duration of each dose, h; 0 is a bolus.
        steady_state: the first dose finds the patient at steady state (SS = 1).
        times: candidate sampling times, h.
        samples: how many each patient keeps at random; [low, high] draws how many; null keeps all.
        continuous: draw the times uniformly over the span of `times` instead.
        jitter: standard deviation of the sampling times around their plan, h.
        grid: first time, last time and number of points of the true curve.
        error: additive, proportional, combined or log_normal.
        error_sd: its standard deviations, a (mg/L) and b.
        lloq: lower limit of quantification, mg/L; several for several assays, one subject after the other.
        noise: sigma of a clearance that wanders within each patient (`FluctuatingClearance`), 1/√h; null for none.
        reversion: rate at which it comes back, 1/h.
        kappa: standard deviation of the random effect of an occasion, by parameter.
        occasions: time at which each occasion of a patient begins, h.
        options: of `CohortData`.
    """

    def __init__(
        self,
        subjects: int = 50,
        test_subjects: int = 0,
        compartments: int = 2,
        absorption: Absorption = "none",
        elimination: Elimination = "linear",
        transits: int = 3,
        lag: bool = False,
        typical: dict[str, float] | None = None,
        cv: dict[str, float] | None = None,
        omega: dict[str, float] | list[list[float]] | None = None,
        populations: dict[str, float] | None = None,
        covariates: dict[str, list[float] | float] | None = None,
        effects: dict[str, float] | None = None,
        doses: list[float] | None = None,
        repeats: int = 1,
        interval: float = 0.0,
        infusion: float = 0.0,
        steady_state: bool = False,
        times: list[float] | None = None,
        samples: int | list[int] | None = 8,
        continuous: bool = False,
        jitter: float = 0.0,
        grid: list[float] | None = None,
        error: str = "proportional",
        error_sd: dict[str, float] | None = None,
        lloq: float | list[float] | None = None,
        noise: float | None = None,
        reversion: float = 0.05,
        kappa: dict[str, float] | None = None,
        occasions: list[float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(subjects, test_subjects, error, error_sd or {"b": 0.2}, **options)
        inlet = "central" if absorption == "none" else "depot"
        mechanism = CompartmentModel(compartments, absorption, elimination, transits, lag=inlet if lag else None)
        self.dynamics = mechanism if noise is None else FluctuatingClearance(mechanism, noise, reversion)
        self.units = Units()
        if cv is not None and omega is not None:
            raise ValueError("give the variability as cv or as omega, not both")
        unnamed = [name for name in effects or {} if name.count("~") != 1]
        if unnamed:
            raise ValueError(f"effects are written PARAMETER~COVARIATE, not {unnamed}")
        typical = typical or {"CL": 4.0, "V1": 70.0, "Q": 4.0, "V2": 50.0}
        spread = {name: omega_from_cv(value) for name, value in cv.items()} if cv else omega
        self.population = Population(
            typical=typical,
            omega=dict.fromkeys(typical, 0.3) if spread is None else spread,
            covariates={k: tuple(v) if isinstance(v, list) else v for k, v in (covariates or {}).items()},  # type: ignore[misc]
            effects={(k.split("~")[0], k.split("~")[1]): v for k, v in (effects or {}).items()},
            prior=_population_prior(populations or {}),
            kappa=kappa or {},
        )
        if repeats < 1:
            raise ValueError(f"repeats must be 1 or more, not {repeats}")
        if any(time < 0 for time in times or ()):
            raise ValueError(f"times must be 0 or later, not {times}")
        records = [
            Dose(
                time=0.0,
                amount=amount,
                duration=infusion,
                interval=interval,
                additional=repeats - 1,
                steady_state=int(steady_state),
            )
            for amount in doses or [10.0, 30.0, 60.0, 120.0]
        ]
        times = times or list(_TIMES)
        first, last, points = grid or [min(times), 72.0 if times == list(_TIMES) else max(times), 200]
        self.design = Design(
            regimens=tuple((record,) for record in records),
            times=tuple(times),
            samples=(samples[0], samples[1]) if isinstance(samples, list) else samples,
            continuous=continuous,
            jitter=jitter,
            lloq=lloq,
            grid=tuple(np.linspace(first, last, int(points)).tolist()),
            occasions=tuple(occasions or ()),
        )

    def provenance(self) -> Provenance:
        return super().provenance()._replace(populations=self._populations())

    def _populations(self) -> str:
        """The prior over populations in words; empty for one population."""
        prior = self.population.prior
        if prior == PopulationPrior():
            return ""
        centres = ", ".join(f"{name} {value:.3g}" for name, value in self.population.typical.items())
        return (
            f"populations within a factor {prior.typical:g} of {centres} (omega within {prior.omega:g}, residual error "
            f"within {prior.error:g} of their centres)"
        )


def _population_prior(factors: dict[str, float]) -> PopulationPrior:
    unknown = set(factors) - {part.name for part in dataclasses.fields(PopulationPrior)}
    if unknown:
        raise ValueError(f"populations takes factors of typical, omega and error, not of {sorted(unknown)}")
    return PopulationPrior(**factors)


def _two_endpoints(times: list[float], samples: int | None) -> Design:
    """Nobody is dosed, and both endpoints are seen at every time that is kept."""
    return Design(((),), tuple(times), samples, endpoints=(1, 2))


class SimulatedLotkaVolterraData(SimulatedData):
    """A simulated cohort of predator–prey series, each with its own rates and starting densities.

    Args:
        subjects: number of series.
        test_subjects: further series for the test.
        typical: typical value of alpha, beta, gamma, delta (per time unit) and of prey0, predator0.
        omega: standard deviation of eta of each, or the full covariance matrix.
        times: candidate observation times.
        samples: how many each series keeps at random; null keeps all.
        logistic: with the logistic limit of the prey's growth and its parameter kappa (`LotkaVolterra`).
        error: additive, proportional, combined or log_normal.
        error_sd: its standard deviations, for prey and predator alike.
        noise: sigma of a noise on each growth rate (`StochasticLotkaVolterra`), per square root of time; null for none.
        options: of `CohortData`.
    """

    def __init__(
        self,
        subjects: int = 50,
        test_subjects: int = 0,
        typical: dict[str, float] | None = None,
        omega: dict[str, float] | list[list[float]] | None = None,
        times: list[float] | None = None,
        samples: int | None = 12,
        logistic: bool = False,
        error: str = "log_normal",
        error_sd: dict[str, float] | None = None,
        noise: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(subjects, test_subjects, error, error_sd or {"b": 0.1}, **options)
        if noise is not None and logistic:
            raise ValueError("a Lotka–Volterra system has no logistic term with noise: leave logistic or noise out")
        self.dynamics = LotkaVolterra(logistic=logistic) if noise is None else StochasticLotkaVolterra(noise)
        self.units = Units(time="", amount="", value="")
        typical = typical or {
            "alpha": 1.3, "beta": 0.9, "gamma": 1.8, "delta": 0.8, "prey0": 1.5, "predator0": 1.5,
        } | ({"kappa": 0.2} if logistic else {})  # fmt: skip
        self.population = Population(typical, dict.fromkeys(typical, 0.15) if omega is None else omega)
        self.design = _two_endpoints(times or np.linspace(0.0, 8.0, 33).tolist(), samples)


class SimulatedSIRData(SimulatedData):
    """A simulated cohort of epidemics, each with its own rates, read as shares of the population.

    Args:
        subjects: number of epidemics.
        test_subjects: further epidemics for the test.
        typical: typical value of b, k (per time unit) and i0.
        omega: standard deviation of eta of each, or the full covariance matrix.
        times: candidate observation times.
        samples: how many each epidemic keeps at random; null keeps all.
        error: additive, proportional, combined or log_normal.
        error_sd: its standard deviations, for the infected and the recovered alike.
        options: of `CohortData`.
    """

    def __init__(
        self,
        subjects: int = 50,
        test_subjects: int = 0,
        typical: dict[str, float] | None = None,
        omega: dict[str, float] | list[list[float]] | None = None,
        times: list[float] | None = None,
        samples: int | None = 12,
        error: str = "combined",
        error_sd: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(subjects, test_subjects, error, error_sd or {"a": 0.005, "b": 0.1}, **options)
        self.dynamics = SIR()
        self.units = Units(time="day", amount="", value="")
        typical = typical or {"b": 0.5, "k": 0.2, "i0": 0.01}
        self.population = Population(typical, dict.fromkeys(typical, 0.25) if omega is None else omega)
        self.design = _two_endpoints(times or np.linspace(1.0, 60.0, 60).tolist(), samples)

"""Magnitudes of a data set, so that networks see numbers near one whatever the units."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuralpk.cohort import Cohort, FloatArray, Subject, Units

_FAR = 5.0


class CovariateScale(NamedTuple):
    """Distribution of one covariate in the training data.

    Attributes:
        centre: median of a covariate that is always positive, mean of the others.
        spread: standard deviation of log(c/centre) of a positive covariate, of c for the others; 1 where all are alike.
        positive: whether all values are above 0.
        binary: whether all values are 0 or 1.
        mean: arithmetic mean; None where only the centre was given.
        lowest: value; None where the range is not known.
        highest: value; None where the range is not known.
    """

    centre: float = 0.0
    spread: float = 1.0
    positive: bool = False
    binary: bool = False
    mean: float | None = None
    lowest: float | None = None
    highest: float | None = None


class Scaling(NamedTuple):
    """Typical magnitudes of a cohort; plain numbers, so that a checkpoint can carry them.

    Attributes:
        time: longest time from the first record of a subject, or of one of its occasions, to the last measured value
            there; a subject that is measured five times as long as 95 % of the others is left out, with a warning that
            names it.
        amount: median dose; 1 where nothing is given.
        value: median of the positive observed values of each endpoint, ``[endpoint]``.
        covariates: name to `CovariateScale`, or to its first values (centre, spread, positive).
        subjects: number of subjects; it sets the share of the log prior that a batch carries.
        units: in which all of these are.
    """

    time: float = 1.0
    amount: float = 1.0
    value: tuple[float, ...] = (1.0,)
    covariates: Mapping[str, CovariateScale | tuple[float, float, bool]] = {}
    subjects: int = 1
    units: Units = Units()

    @classmethod
    def of(cls, cohort: Cohort) -> Scaling:
        """Measure a cohort.

        Raises:
            ValueError: no observation in the cohort.
        """
        found = cls.of_parts([cohort])
        if found is None:
            raise ValueError("the cohort has no observation to take its scale from")
        return found._replace(covariates={name: _covariate(cohort, name) for name in cohort.covariate_names})

    @classmethod
    def of_parts(cls, parts: Iterable[Cohort]) -> Scaling | None:
        """Measure a cohort that comes in parts, each read once: the magnitudes of the whole one, but for covariates.

        Returns:
            None without an observation.
        """
        amounts, spans = [], dict[str, float]()
        positive: dict[int, list[FloatArray]] = {}
        subjects, units = 0, Units()
        for cohort in parts:
            amounts += [dose.amount for subject in cohort for dose in subject.doses if dose.amount > 0]
            spans |= {subject.id: _span(subject) for subject in cohort if subject.observed.any()}
            values = np.concatenate([subject.values for subject in cohort])
            endpoints = np.concatenate([subject.endpoints for subject in cohort])
            for number in np.unique(endpoints).tolist():
                positive.setdefault(number, []).append(values[(endpoints == number) & (values > 0)])
            subjects, units = subjects + len(cohort), cohort.units
        if not spans:
            return None
        value = []
        for number in range(1, max(positive) + 1):
            seen = np.concatenate(positive.get(number, [np.zeros(0)]))
            value.append(float(np.median(seen)) if len(seen) else 1.0)
        amount = float(np.median(amounts)) if amounts else 1.0
        return cls(_time(spans), amount, tuple(value), {}, subjects, units)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any] | None) -> Scaling:
        """From the dictionary of `plain`, or of a checkpoint or YAML file, where tuples have become lists."""
        if plain is None:
            return cls()
        covariates = {name: CovariateScale(*row) for name, row in plain.get("covariates", {}).items()}
        value, subjects = tuple(map(float, plain["value"])), int(plain.get("subjects", 1))
        units = Units(*plain.get("units", ()))
        return cls(float(plain["time"]), float(plain["amount"]), value, covariates, subjects, units)

    def plain(self) -> dict[str, Any]:
        """As a dictionary of numbers and lists."""
        covariates = {name: list(row) for name, row in self.covariates.items()}
        magnitudes = {"time": self.time, "amount": self.amount, "value": list(self.value)}
        return magnitudes | {"covariates": covariates, "subjects": self.subjects, "units": list(self.units)}

    def covariate(self, name: str) -> CovariateScale:
        """The distribution of one covariate.

        Raises:
            ValueError: no covariate of this name in the training data.
        """
        if name not in self.covariates:
            known = ", ".join(sorted(self.covariates)) or "none"
            raise ValueError(
                f"{name!r} is no covariate of the training data, which have {known}; those are read that are named, as "
                f"in covariates={name}"
            )
        return CovariateScale(*self.covariates[name])

    def standardise(self, covariates: Tensor) -> Tensor:
        """Covariates as networks read them, ``[..., covariate]``, in the order of their names: log(c/centre)/spread of
        positive ones, (c − centre)/spread of the others."""
        rows = [self.covariate(name)[:3] for name in sorted(self.covariates)]
        if not rows:
            return covariates
        centre, spread, positive = torch.tensor(rows, dtype=covariates.dtype, device=covariates.device).unbind(-1)
        logs = torch.log(covariates.clamp(min=1e-30) / centre.clamp(min=1e-30))
        return torch.where(positive > 0, logs, covariates - centre) / spread


def _span(subject: Subject) -> float:
    """Longest time from the first record of an occasion to its last measured value."""
    seen = subject.times[subject.observed]
    starts = [subject.start, *(one.start for one in subject.occasions[1:])]
    last = [seen[seen < end][-1:] for end in (*starts[1:], np.inf)]
    return max(float(time[0]) - start for start, time in zip(starts, last, strict=True) if len(time))


def _time(spans: Mapping[str, float]) -> float:
    limit = _FAR * float(np.quantile(list(spans.values()), 0.95, method="lower"))
    late = {name: span for name, span in spans.items() if span > limit > 0}
    if late:
        named = ", ".join(f"{name} ({span:g})" for name, span in list(late.items())[:5])
        warnings.warn(
            f"subject {named}: measured more than {_FAR:g} times as long as nearly all others, up to {limit / _FAR:g}; "
            "the magnitude of time is set without them. Look at their TIME and its unit",
            stacklevel=4,
        )
    return max((span for name, span in spans.items() if name not in late), default=0.0) or 1.0


def _covariate(cohort: Cohort, name: str) -> CovariateScale:
    steps = [subject.covariates[name] for subject in cohort]
    values = np.array(
        [value for step in steps for value in ([v for _, v in step] if isinstance(step, tuple) else [step])]
    )
    positive = bool((values > 0).all())
    centre = float(np.median(values)) if positive else float(values.mean())
    spread = float(np.log(values / centre).std() if positive else values.std())
    binary = bool(np.isin(values, (0.0, 1.0)).all())
    ends = float(values.min()), float(values.max())
    return CovariateScale(centre, spread if spread > 1e-8 else 1.0, positive, binary, float(values.mean()), *ends)

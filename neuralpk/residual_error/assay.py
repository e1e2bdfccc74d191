"""Assays: how a model says that its outputs are measured."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from neuralpk.cohort import Cohort
from neuralpk.part import describe
from neuralpk.residual_error.base import ResidualError
from neuralpk.residual_error.by_endpoint import ErrorByEndpoint
from neuralpk.residual_error.normal import ProportionalError
from neuralpk.residual_error.short_names import error_class


@dataclass(frozen=True)
class Assay:
    """How one output is measured, as far as the model says it.

    Args:
        output: its name.
        error: short name of its error model; None where the model does not say it.
        values: starting values of the parameters of the error model by name.
        lloq: lower limit of quantification, in the unit of the value; None for none.
    """

    output: str
    error: str | None = None
    values: Mapping[str, float] = field(default_factory=dict)
    lloq: float | None = None

    def residual_error(self, fixed: bool = False) -> ResidualError | None:
        """A new error model at the starting values; None where the model does not say it.

        Args:
            fixed: whether it keeps them in a fit.
        """
        if self.error is None:
            return None
        options: dict[str, Any] = dict(self.values) | ({"fixed": True} if fixed else {})
        return error_class(self.error)(**options)


def stated_error(assays: Sequence[Assay], given: ResidualError | None) -> ResidualError:
    """The residual error of a model: what it states itself, and for the other outputs what the user gives.

    Where several endpoints read one output (`ErrorByEndpoint.outputs`), the model states the error of one of these
    assays at least; the others may have another kind.

    Args:
        assays: of the outputs, in the order of the endpoints; empty where the model says nothing.
        given: by the user; None for nothing, which is a proportional error.

    Raises:
        ValueError: the user gives an error model for an output whose error the model states, and it is another one.
    """
    stated = [assay.residual_error() for assay in assays]
    if all(error is None for error in stated):
        return ProportionalError() if given is None else given
    asked: Sequence[ResidualError | None] = [given] * len(stated)
    if isinstance(given, ErrorByEndpoint):
        asked = given.models
        outputs_read(given, len(assays))
        assays = assays_read(assays, given.outputs)
        stated = [assay.residual_error() for assay in assays]
        if len(asked) != len(stated):
            raise ValueError(f"error has {len(asked)} endpoints; the text of the model has {len(stated)} outputs")
    # one error for all is for the outputs of which nothing is stated
    for_others = not isinstance(given, ErrorByEndpoint) and None in stated
    read = [assay.output for assay in assays]
    of_kind = {
        assay.output for assay, error, own in zip(assays, stated, asked, strict=True) if type(own) is type(error)
    }
    used: list[ResidualError] = []
    for assay, error, own in zip(assays, stated, asked, strict=True):
        if error is None:
            used.append(ProportionalError() if own is None else copy.deepcopy(own))
        elif own is None or for_others or describe(own) == describe(error):  # as in a checkpoint
            used.append(error)
        elif read.count(assay.output) > 1 and assay.output in of_kind:
            plain = type(own) is type(error) and describe(own) == describe(type(own)())
            used.append(error if plain else copy.deepcopy(own))
        else:
            raise ValueError(
                f"the text of the model states the error of {assay.output}, {assay.error}, and error is a "
                f"{type(own).__name__}: leave error out, or remove '~ {assay.error}' from the text"
            )
    outputs = given.outputs if isinstance(given, ErrorByEndpoint) else ()
    if len(used) == 1:
        return used[0]
    return ErrorByEndpoint(used, list(outputs)) if outputs else ErrorByEndpoint(used)


def assays_read(assays: Sequence[Assay], outputs: Sequence[int]) -> Sequence[Assay]:
    """Assay of the output that each endpoint reads.

    Args:
        assays: of the outputs of a model; empty where the model says nothing.
        outputs: that the endpoints read, from 1; empty where endpoint k reads output k.
    """
    return [assays[k - 1] for k in outputs] if assays and outputs else assays


def outputs_read(error: ResidualError, outputs: int) -> list[int]:
    """Output of a model that each endpoint reads, from 0.

    Args:
        error: the residual error, which says it.
        outputs: how many the model has.

    Raises:
        ValueError: an output that the model does not have.
    """
    if error.outputs and max(error.outputs) > outputs:
        raise ValueError(f"outputs of the residual error are {list(error.outputs)}; the model has {outputs}")
    return [k - 1 for k in error.outputs] or list(range(outputs))


def censored_below_lloq(cohort: Cohort, assays: Sequence[Assay]) -> Cohort:
    """Values below the limits of quantification of a model as censored (M3), with a warning that counts them.

    A table with a column CENS says itself what is censored: its values stay, and the warning says so.

    Args:
        cohort: the data.
        assays: of the endpoints, in their order.
    """
    limits = {k + 1: (assay.output, assay.lloq) for k, assay in enumerate(assays) if assay.lloq is not None}
    subjects, found = [], dict.fromkeys(limits.values(), 0)
    for subject in cohort if limits else ():
        values, censored = subject.values.copy(), subject.censored.copy()
        for endpoint, (output, lloq) in limits.items():
            with np.errstate(invalid="ignore"):
                below = (subject.endpoints == endpoint) & (subject.censored == 0) & (subject.values < lloq)
            found[output, lloq] += int(below.sum())
            values[below], censored[below] = lloq, 1
        subjects.append(dataclasses.replace(subject, values=values, censored=censored))
    counted = [f"{n} of {output} (LLOQ {lloq:g})" for (output, lloq), n in found.items() if n]
    if not counted:
        return cohort
    if cohort.states_censoring:
        warnings.warn(
            f"values below the limit of quantification of the model are read as measured, because the table has CENS: "
            f"{', '.join(counted)}",
            stacklevel=2,
        )
        return cohort
    warnings.warn(
        f"values below the limit of quantification of the model are read as censored: {', '.join(counted)}",
        stacklevel=2,
    )
    return dataclasses.replace(cohort, subjects=tuple(subjects))

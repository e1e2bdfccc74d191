"""Decoder: states that start, move in time and are observed, however they move."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from neuralpk.cohort import MODELLED_DURATION, MODELLED_RATE, Cohort
from neuralpk.cohort_batch import CohortBatch, Doses
from neuralpk.part import Part
from neuralpk.residual_error import Assay, assays_read, censored_below_lloq
from neuralpk.scaling import Scaling

if TYPE_CHECKING:
    from neuralpk.dynamics.dynamics_base import Dynamics
    from neuralpk.solve import Trajectory


class Solver(Protocol):
    """An object that solves a dynamics for the subjects of a batch; every engine of `neuralpk.solve` is one."""

    def solve(self, dynamics: Dynamics, theta: Tensor, batch: CohortBatch, times: Tensor | None = None) -> Trajectory:
        """The states at `times` ``[subject, time]`` (None: at the records of the batch), for
        theta ``[subject, period, parameter]``."""
        ...


class Decoder(Part, nn.Module, ABC):
    """States that start at a value, move in time and are observed; one row of every tensor is one subject.

    Everything that differs between subjects comes in through `theta`; the module's weights are shared by all subjects.
    The constructor takes plain values and parts; what depends on the data is set by `build`.

    Attributes:
        states: names of the components of y.
        parameter_names: names of the components of theta. The named parameters, those in `guess`, come first; the
            others are dimensions of the latent space, and `covariates`.
        covariates: components of theta that are covariates, with the value for a subject in whom one is not recorded;
            None where there is no such value.
        endpoints: index of the state at which each endpoint (DVID 1, 2, …) is observed, from 0.
        assays: how each endpoint is measured, where the decoder says that; empty where it says nothing.
        dosed: whether doses enter the states, which are then empty before the first dose.
        penalised: whether `penalty` is more than None.
        ranges: open intervals of named parameters that are not simply positive: between two finite bounds they are
            logit-normal between subjects, between -inf and inf normal.
        fixed: named parameters whose typical value is the starting value and is not learned.
        units: of parameters, covariates, states and outputs, by name, as far as they are known.
        with_rate: states whose infusions with RATE -1 have a rate that the model knows.
        with_duration: states whose infusions with RATE -2 have a duration that the model knows.
        stochastic: whether the states have noise of their own, so that theta does not determine them.
    """

    states: tuple[str, ...]
    parameter_names: tuple[str, ...]
    covariates: Mapping[str, float | None] = {}
    endpoints: tuple[int, ...] = (0,)
    assays: tuple[Assay, ...] = ()
    dosed: bool = False
    penalised: bool = False
    stochastic: bool = False
    ranges: Mapping[str, tuple[float, float]] = {}
    fixed: tuple[str, ...] = ()
    units: Mapping[str, str] = {}
    with_rate: tuple[str, ...] = ()
    with_duration: tuple[str, ...] = ()

    def build(self, scaling: Scaling) -> None:
        """Set what depends on the magnitudes of the data, in this decoder and in the decoders inside it.

        Without a call all magnitudes are 1. A second call replaces what the first one set.
        """
        for child in self.children():
            if isinstance(child, Decoder):
                child.build(scaling)

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        """Magnitude of every state in such data: by default the values of its endpoint, or of the first endpoint."""
        values = dict(zip(self.endpoints, scaling.value, strict=False))
        return tuple(values.get(k, scaling.value[0]) for k in range(len(self.states)))

    def guess(self, scaling: Scaling) -> dict[str, float]:
        """Positive starting values of the named parameters for data of these magnitudes, by name."""
        return {}

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters by name, each ``[...]`` for a theta ``[..., parameter]``."""
        return dict(zip(self.parameter_names, theta.unbind(-1), strict=True))

    @property
    def population_names(self) -> tuple[str, ...]:
        """The components of theta that have a distribution in the population: all but the covariates."""
        return tuple(name for name in self.parameter_names if name not in self.covariates)

    def with_covariates(self, theta: Tensor, covariates: Mapping[str, Tensor]) -> Tensor:
        """theta as the solver takes it, ``[..., parameter]``.

        Args:
            theta: its components in the order of `population_names`, ``[..., parameter]``.
            covariates: by name, each ``[...]``; others than `covariates` are not read.
        """
        if not self.covariates:
            return theta
        parts = dict(zip(self.population_names, theta.unbind(-1), strict=True))
        parts |= {name: covariates[name].to(theta).expand(theta.shape[:-1]) for name in self.covariates}
        return torch.stack([parts[name] for name in self.parameter_names], dim=-1)

    def read_cohort(self, cohort: Cohort, outputs: Sequence[int] = ()) -> Cohort:
        """Data as the decoder states that they are recorded: values below its limits of quantification are censored
        (`censored_below_lloq`), and covariates that the data do not have get the values for that case, with a warning.

        Args:
            cohort: the data.
            outputs: that the endpoints read, from 1; empty where endpoint k reads output k.
        """
        absent = {k: v for k, v in self.covariates.items() if v is not None and k not in cohort.covariate_names}
        if absent and len(cohort):
            values = ", ".join(f"{name} = {value:g}" for name, value in absent.items())
            warnings.warn(f"the data have no covariate {', '.join(absent)}; the model takes {values}", stacklevel=2)
            subjects = (dataclasses.replace(s, covariates={**s.covariates, **absent}) for s in cohort)
            cohort = dataclasses.replace(cohort, subjects=tuple(subjects))
        return censored_below_lloq(cohort, assays_read(self.assays, outputs))

    def initial_state(self, theta: Tensor) -> Tensor:
        """State at the first record of a subject, ``[..., state]`` for theta ``[..., parameter]``: 0 by default."""
        return theta.new_zeros((*theta.shape[:-1], len(self.states)))

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        """Noise-free value of an assay of every state, ``[..., state]`` for y ``[..., state]`` and
        theta ``[..., parameter]``: by default the state itself."""
        return y

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        """Secondary parameters, which follow from theta and are reported with it, each ``[...]``."""
        return {}

    @property
    def noise(self) -> dict[str, Tensor]:
        """Parameters of the noise of the states by name, each a scalar; empty for states without noise."""
        return {}

    def log_prior(self) -> Tensor | float:
        """Log prior density of the weights, up to a constant; the number 0 where the weights have no prior."""
        return 0.0

    def centre_prior(self) -> None:
        """Move the centre of the prior density to the present weights."""

    def magnitudes(self) -> list[Tensor]:
        """Those of the weights with a prior that count by their magnitude alone: draws of them keep their sign."""
        return []

    def penalty(self, t: Tensor, y: Tensor, theta: Tensor, mask: Tensor) -> Tensor | None:
        """Penalty that a training adds to the loss, computed along the solution, ``[subject]``; None for none.

        Args:
            t: time since each subject's first record, ``[subject, time]``.
            y: ``[subject, time, state]``.
            theta: ``[subject, time, parameter]``.
            mask: which times count, bool ``[subject, time]``.
        """
        return None

    @abstractmethod
    def follow(self, theta: Tensor, batch: CohortBatch, times: Tensor | None, engine: Solver) -> Trajectory:
        """The states of every subject in time.

        Args:
            theta: ``[subject, period, parameter]``.
            batch: doses and records.
            times: where the states are wanted, ``[subject, time]``; None for the records of the batch.
            engine: solver of differential equations; a decoder without such an equation does not use it.
        """


def check_doses(decoder: Decoder, doses: Doses) -> None:
    """Whether a decoder has a rate or a duration for every infusion that leaves it to the model (RATE -1, -2).

    Args:
        decoder: which the doses enter.
        doses: of some subjects.

    Raises:
        ValueError: a dose for which it has none.
    """
    for code, have, what in (
        (MODELLED_RATE, decoder.with_rate, "rate"),
        (MODELLED_DURATION, decoder.with_duration, "duration"),
    ):
        asked = doses.mask & (doses.rate == code)
        if not bool(asked.any()):
            continue
        given = torch.tensor([name in have for name in decoder.states], device=asked.device)
        without = asked & ~given[doses.compartment.clamp(max=len(decoder.states) - 1)]
        if bool(without.any()):
            name = decoder.states[int(doses.compartment[without][0].clamp(max=len(decoder.states) - 1))]
            raise ValueError(
                f"{int(without.sum())} doses into {name} have RATE {code:g}, which leaves the {what} of the "
                f"infusion to the model, and {type(decoder).__name__} has none: write {what}({name}) = … in the text "
                f"of the model, take CompartmentModel({what}='{name}'), or give RATE or DUR"
            )

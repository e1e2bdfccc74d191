"""The population model: how patients differ, how their concentrations change, and how these are measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from neuralpk.cohort import Cohort
from neuralpk.cohort_batch import CohortBatch, theta_in
from neuralpk.dynamics import Decoder, StochasticDynamics, check_doses
from neuralpk.parameters import RESIDUAL, Coordinate, PopulationParameters
from neuralpk.residual_error import ResidualError, outputs_read, stated_error
from neuralpk.scaling import Scaling
from neuralpk.solve import Auto, Engine, Noise, Trajectory, solve_paths

if TYPE_CHECKING:
    from neuralpk.path_guide import PathGuide

_PARAMETER_DRAWS = 32


@dataclass(frozen=True)
class Prediction:
    """Predicted values of a batch.

    Args:
        z: standardised random effects and latent dimensions, ``[subject, latent]``.
        theta: individual parameters at the first record, ``[subject, parameter]``.
        value: predicted value of every record, ``[subject, observation]``; NaN for a subject that could not be solved.
        trajectory: the solution behind it.
        factor: of the residual error of every record (`PopulationModel.factor`), ``[subject, observation]``; None for
            1.
    """

    z: Tensor
    theta: Tensor
    value: Tensor
    trajectory: Trajectory
    factor: Tensor | None = None


class PopulationModel(nn.Module):
    """Generative model of a population; it needs no encoder and no training. With y_ij the j-th value of subject i::

        z_i ~ N(0, I)      theta_i = population(z_i, covariates_i)      A_i = dynamics(theta_i, doses_i)
        y_ij ~ error(observe(A_i(t_ij)))

    Where the population has the parameter RUV, the residual error of a subject is RUV_i times as large.

    What depends on the magnitudes of the data (starting values, the units in which networks read) is made by `build`;
    a model with all its numbers given is built with ``Scaling()``.

    Args:
        dynamics: moves the states and says what is observed: equations, networks or both, with noise or without.
        parameters: distribution of the individual parameters; default log-normal and independent.
        error: residual error; default what the dynamics states of its outputs, else proportional.
        engine: solver of the dynamics; default `neuralpk.solve.Auto`.

    Attributes:
        population: the distribution of the individual parameters.
        scaling: magnitudes of the data that the model was built for; None before `build`.
        parameter_draws: draws of the population's parameters and of the uncertain weights from their approximate
            posterior, as differences from the estimate, ``[draw, coordinate + weight]``, those of covariate networks
            first; NaN until they are computed (`neuralpk.estimation.standard_errors`).
    """

    parameter_draws: Tensor
    value_scale: Tensor

    def __init__(
        self,
        dynamics: Decoder,
        parameters: PopulationParameters | None = None,
        error: ResidualError | None = None,
        engine: Engine | None = None,
    ) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.population = PopulationParameters() if parameters is None else parameters
        self.error = stated_error(dynamics.assays, None) if error is None else error
        self.engine = Auto() if engine is None else engine
        self.scaling: Scaling | None = None

    def build(self, scaling: Scaling, dtype: torch.dtype | None = None) -> PopulationModel:
        """Make what depends on the magnitudes of the data.

        Args:
            scaling: magnitudes of the data.
            dtype: of all numbers of the model; default that of torch, which a later ``double()`` changes with the
                rounding of the first.

        Raises:
            ValueError: more endpoints in the data than in the dynamics; a dynamics whose named parameters do not come
                first; names of parameters or covariates that do not exist.
        """
        outputs = outputs_read(self.error, len(self.dynamics.endpoints))
        self.endpoints = tuple(self.dynamics.endpoints[k] for k in outputs)
        if len(scaling.value) > len(outputs):
            raise ValueError(
                f"the data have {len(scaling.value)} endpoints (DVID); {type(self.dynamics).__name__} has "
                f"{len(outputs)}. Several assays of one output: outputs of ErrorByEndpoint, as in --outputs 1 1"
            )
        if dtype is not None:
            self.to(dtype)
        # of an output that several endpoints read the first counts
        sizes = dict(reversed([*zip(outputs, scaling.value, strict=False)]))
        of_outputs = scaling._replace(value=tuple(sizes[k] for k in sorted(sizes)))
        self.dynamics.build(of_outputs)
        names, guess = self.dynamics.population_names, self.dynamics.guess(of_outputs)
        guess = {name: guess[name] for name in names if name in guess}
        if tuple(guess) != names[: len(guess)]:
            raise ValueError(
                f"{type(self.dynamics).__name__}: parameter_names must begin with the named parameters, those "
                f"of guess() ({', '.join(guess)}), before latent dimensions; they are {', '.join(names)}"
            )
        unknown = [name for name in self.dynamics.covariates if name not in scaling.covariates]
        if unknown:
            known = ", ".join(sorted(scaling.covariates)) or "none"
            raise ValueError(
                f"{type(self.dynamics).__name__} reads the covariates {', '.join(unknown)}; the data have {known}"
            )
        self.scaling = scaling
        latent, fixed = len(names) - len(guess), self.dynamics.fixed
        self._named_parameters = len(guess)
        if self.population.asks_for_residual:
            self._check_residual(guess)
            guess, fixed = {**guess, RESIDUAL: 1.0}, (*fixed, RESIDUAL)
        self.population.build(guess, latent, scaling, dtype, self.dynamics.ranges, fixed)
        self.error.build(scaling)
        self.register_buffer("value_scale", torch.tensor(scaling.value), persistent=False)
        weights = [*self.covariate_weights(), *self.uncertain_weights()]
        size = len(self.coordinates()) + sum(weight.numel() for weight in weights)
        self.register_buffer("parameter_draws", torch.full((_PARAMETER_DRAWS, size), torch.nan))
        return self if dtype is None else self.to(dtype)

    def _check_residual(self, guess: Mapping[str, float]) -> None:
        """Refuse what a factor of the residual error cannot be."""
        if RESIDUAL in guess:
            raise ValueError(
                f"{RESIDUAL} is the factor of the residual error: give that parameter of the dynamics another name"
            )
        if self.dynamics.stochastic:
            raise ValueError(
                f"{type(self.dynamics).__name__} has noise of its own; the parameter {RESIDUAL} of the residual error "
                "is for models without"
            )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """What has not been computed is not saved: a state holds finite numbers only."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.scaling is not None and not self.has_parameter_draws:
            del destination[f"{prefix}parameter_draws"]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Draws that were not saved have not been computed."""
        if self.scaling is not None:
            state_dict.setdefault(f"{prefix}parameter_draws", torch.full_like(self.parameter_draws, torch.nan))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def latent_size(self) -> int:
        """Number of components of z that belong to a subject on all its occasions."""
        return self.population.latent_size

    def latents(self, batch: CohortBatch) -> Tensor:
        """Which components of z each subject has, bool ``[subject, latent]``: those of all its occasions, then for each
        occasion of the batch one for every parameter that changes with it. Of an occasion that is padding they have
        their standard normal distribution, and no effect.
        """
        of_all = batch.occasions.new_ones((len(batch), self.latent_size))
        changing = len(self.population.changing)
        return torch.cat([of_all, batch.occasions.repeat_interleave(changing, dim=1)], dim=1)

    # ---- what the model can do

    def idle_covariates(self, encoder: bool = False) -> list[str]:
        """Names of the covariates of the training data that nothing in the model reads; of a model that was built.

        Args:
            encoder: whether the model has an encoder, which reads all.
        """
        assert self.scaling is not None
        if encoder or self.population.latent:
            return []
        read = {name for _, effect in self.population.effects_by_parameter() for name in effect.covariates}
        return sorted({*self.scaling.covariates} - read - {*self.dynamics.covariates})

    def table_covariates(self, encoder: bool = False) -> list[str]:
        """Names of the covariates that a table of patients has to have, beside those of the equations; of a model that
        was built.

        Args:
            encoder: whether the model has an encoder, which reads all covariates of the training data.
        """
        assert self.scaling is not None
        return sorted({*self.scaling.covariates} - {*self.dynamics.covariates} - {*self.idle_covariates(encoder)})

    @property
    def has_likelihood(self) -> bool:
        """Whether log p(y | z) can be computed; with a stochastic dynamics it is an integral over all paths."""
        return not self.dynamics.stochastic

    @property
    def has_network(self) -> bool:
        """Whether the dynamics has weights of a network."""
        return any(True for _ in self.dynamics.parameters())

    @property
    def is_uncertain(self) -> bool:
        """Whether the population was learned from data, so that its parameters have an uncertainty."""
        return self.population.learned and len(self.coordinates()) > 0

    @property
    def has_parameter_draws(self) -> bool:
        """Whether the uncertainty of the population has been computed (`parameter_draws`)."""
        return not bool(self.parameter_draws.isnan().any())

    def coordinates(self, fixed: bool = False) -> list[Coordinate]:
        """The numbers that describe the population: typical values, Omega, kappa, covariate effects, residual error.

        Args:
            fixed: whether single numbers that are fixed are among them.
        """
        # of a known population nothing is learned, and all of it is reported
        errors = [
            Coordinate(
                "error",
                number.name,
                number.tensor,
                number.place,
                reported=torch.exp,
                fixed=number.fixed and self.population.learned,
            )
            for number in self.error.numbers()
        ]
        return [*self.population.coordinates(fixed), *(one for one in errors if fixed or not one.fixed)]

    def reported_values(self) -> dict[str, float]:
        """Every learned number of the population by its name, on the scale of tables: omegas as standard deviations,
        correlations as such."""
        population = self.population
        values = {one.name: one.value_reported for one in self.coordinates()}
        pairs = zip(population.pairs(), population.correlations().tolist(), strict=True)
        correlations = {f"corr {a}~{b}": value for (a, b), value in pairs}
        return values | {name: value for name, value in correlations.items() if name in values}

    def covariate_weights(self) -> list[nn.Parameter]:
        """Weights of the networks among the covariate effects, which have a prior density."""
        return [effect.weight for effect in self.population.network_effects()]

    def uncertain_weights(self) -> list[nn.Parameter]:
        """Weights of the dynamics, where they have a prior density (`Decoder.log_prior`)."""
        return list(self.dynamics.parameters()) if isinstance(self.dynamics.log_prior(), Tensor) else []

    def population_weights(self) -> list[nn.Parameter]:
        """Typical values, Omega, covariate effects and residual error, as the optimiser takes them."""
        return [*self.population.parameters(), *self.error.parameters()]

    def read_cohort(self, cohort: Cohort) -> Cohort:
        """Data as the dynamics states that they are recorded (`Decoder.read_cohort`), with the occasions of the
        subjects where the population has variability between occasions.

        Raises:
            ValueError: no occasion in the data, where the population has that variability.
        """
        cohort = self.dynamics.read_cohort(cohort, self.error.outputs)
        column = self.population.occasion_column
        if column is None:
            return cohort.without_occasions()
        if not any(subject.occasions for subject in cohort):
            raise ValueError(
                f"kappa of {', '.join(self.population.kappa_start)} needs the occasions of the subjects: read the "
                f"table with occasion={column}, or give each Subject its occasions"
            )
        return cohort

    # ---- densities

    def population_log_prior(self) -> Tensor:
        """log p(typical values, Omega, residual error) up to a constant, a scalar; 0 where it is flat."""
        return self.population.log_prior() + self.error.log_prior()

    def with_prior(self) -> list[str]:
        """Names of the numbers of the population that have a prior, as in tables."""
        of_omega = self.population.omega_prior_sd
        names = list(of_omega) if isinstance(of_omega, Mapping) else self.population.varying if of_omega else []
        errors = [number.name for number in self.error.numbers() if number.has_prior and not number.fixed]
        kappas = [f"kappa {name}" for name in self.population.kappa_prior_sd]
        return [*self.population.typical_prior_sd, *(f"omega {name}" for name in names), *kappas, *errors]

    def log_prior(self) -> Tensor:
        """log p(weights of the dynamics, typical values, Omega, residual error) up to a constant, a scalar; 0 where it
        is flat."""
        return self.population_log_prior() + self.dynamics.log_prior()

    def log_density(self, z: Tensor) -> Tensor:
        """log p(z) = log N(z; 0, I), ``[...]`` for z ``[..., latent]``."""
        return -0.5 * (z.square().sum(-1) + z.shape[-1] * math.log(2 * math.pi))

    def log_likelihood(self, z: Tensor, batch: CohortBatch) -> Tensor:
        """log p(y | z) over the records of ``batch.target``, ``[subject]``; −inf where a subject could not be solved.

        Raises:
            ValueError: a stochastic dynamics, whose likelihood given z is an integral over all paths.
        """
        if not self.has_likelihood:
            raise ValueError(
                f"{type(self.dynamics).__name__} has noise: log p(y | z) is an integral over all its paths and is not "
                "computed here; `neuralpk.objectives.PathELBO` bounds it"
            )
        prediction = self.predict(z, batch)
        solved = prediction.trajectory.ok
        if bool(solved.all()):
            return self.error.log_likelihood(batch, prediction.value, prediction.factor).sum(-1)
        # rows are left out, not masked: the derivative of a masked NaN is still NaN
        kept = solved.nonzero()[:, 0]
        out = z.new_full((len(z),), -torch.inf)
        return out.index_copy(0, kept, self.log_likelihood(z[kept], batch.select(kept))) if len(kept) else out

    # ---- predictions

    def typical(self, subjects: int) -> Tensor:
        """z of the typical patient, 0, ``[subject, latent]``, without latents of occasions: kappa is 0."""
        return self.value_scale.new_zeros((subjects, self.latent_size))

    def individual_parameters(self, z: Tensor, batch: CohortBatch) -> dict[str, Tensor]:
        """Parameters at the first record and without kappa, with those derived from them and RUV, by name, each
        ``[subject]``."""
        of_subject = z[:, : self.latent_size]
        return self._named(self.theta(of_subject, batch)[:, 0]) | self._residual(of_subject, batch)

    def occasion_parameters(self, z: Tensor, batch: CohortBatch) -> dict[str, Tensor]:
        """Parameters at the beginning of every occasion, with those derived from them, by name, each
        ``[subject, occasion]``; NaN for padding."""
        here = batch.occasion[:, None] == torch.arange(batch.occasions.shape[1], device=batch.device)[:, None]
        first = here.long().argmax(-1)  # period of each
        named = self._named(theta_in(self.theta(z, batch), first)) | self._residual(z, batch, first)
        return {name: torch.where(batch.occasions, value, torch.nan) for name, value in named.items()}

    def _residual(self, z: Tensor, batch: CohortBatch, periods: Tensor | None = None) -> dict[str, Tensor]:
        """The parameter of the residual error by name, at the first period or at some, ``[subject, period]``."""
        if not self.has_factor:
            return {}
        found = self.population(z, batch.covariates, batch.occasion)[..., self._named_parameters]
        return {RESIDUAL: found[:, 0] if periods is None else found.gather(1, periods)}

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        named = self.dynamics.named(theta)
        return {name: named[name] for name in self.dynamics.population_names} | self.dynamics.derived(theta)

    def theta(self, z: Tensor, batch: CohortBatch) -> Tensor:
        """Parameters of the dynamics, its covariates among them, ``[subject, period, parameter]``."""
        return self.of_dynamics(self.population(z, batch.covariates, batch.occasion), batch)

    @property
    def has_factor(self) -> bool:
        """Whether the population has a parameter of the residual error, RUV."""
        return RESIDUAL in self.population.names

    def factor(self, z: Tensor, batch: CohortBatch) -> Tensor | None:
        """Factor of the residual error of every record, ``[subject, observation]``; None for 1, where the population
        has no RUV."""
        if not self.has_factor:
            return None
        of_periods = self.population(z, batch.covariates, batch.occasion)[..., self._named_parameters]
        return batch.theta_at(of_periods[..., None], batch.time, batch.row)[..., 0]

    def of_dynamics(self, theta: Tensor, batch: CohortBatch) -> Tensor:
        """Individual parameters ``[subject, period, parameter]`` without that of the residual error, with the
        covariates that the dynamics reads."""
        assert self.scaling is not None
        if self.has_factor:
            k = self._named_parameters
            theta = torch.cat([theta[..., :k], theta[..., k + 1 :]], dim=-1)
        columns = dict(zip(sorted(self.scaling.covariates), batch.covariates.unbind(-1), strict=True))
        return self.dynamics.with_covariates(theta, columns)

    def trajectory(
        self,
        z: Tensor,
        batch: CohortBatch,
        times: Tensor | None = None,
        guide: PathGuide | None = None,
        noise: Noise | None = None,
    ) -> Trajectory:
        """Solution of the dynamics for every subject.

        Args:
            z: ``[subject, latent]``.
            batch: doses, covariates and records.
            times: where the states are wanted, ``[subject, time]``; default the records of the batch.
            guide: of a stochastic dynamics, leads the paths through the samples of the context; None for the prior.
            noise: of a stochastic dynamics, the Brownian motions; None for the path without noise.

        Raises:
            ValueError: a record of a compartment or endpoint that the dynamics does not have.
        """
        self._check_records(batch)
        check_doses(self.dynamics, batch.doses)
        theta = self.theta(z, batch)
        if not self.dynamics.stochastic:
            return self.dynamics.follow(theta, batch, times, self.engine)
        dynamics, guiding = cast(StochasticDynamics, self.dynamics), None if guide is None else guide(self, batch)
        return solve_paths(dynamics, theta, batch, times, self.engine, noise, guiding)

    def predict(
        self, z: Tensor, batch: CohortBatch, guide: PathGuide | None = None, noise: Noise | None = None
    ) -> Prediction:
        """Predicted value of every record; arguments as for `trajectory`."""
        trajectory = self.trajectory(z, batch, guide=guide, noise=noise)
        value = self.recorded(trajectory.states, trajectory.theta, batch)
        return Prediction(z, trajectory.theta[:, 0], value, trajectory, self.factor(z, batch))

    def observe(self, trajectory: Trajectory) -> Tensor:
        """Noise-free value of every endpoint along a solution, ``[subject, time, endpoint]``."""
        return self.dynamics.observe(trajectory.states, trajectory.theta)[..., list(self.endpoints)]

    def recorded(self, states: Tensor, theta: Tensor, batch: CohortBatch) -> Tensor:
        """Noise-free value of every record, ``[subject, observation]``, from the states and the parameters at the
        records, ``[subject, observation, ...]``: of the compartment (CMT) of the record, else of its endpoint (DVID).
        """
        observed = self.dynamics.observe(states, theta)
        of_endpoint = torch.tensor(self.endpoints, device=batch.device)[batch.endpoint]
        state = torch.where(batch.compartment < 0, of_endpoint, batch.compartment)
        return observed.gather(-1, state[..., None])[..., 0]

    def residual(self, batch: CohortBatch, prediction: Prediction) -> Tensor:
        """Quantile residual of every record, ``[subject, observation]`` (`ResidualError.standardise`)."""
        found = self.error.standardise(batch.value, prediction.value, batch.endpoint)
        return found if prediction.factor is None else found / prediction.factor

    def simulate(self, z: Tensor, noise: Tensor, batch: CohortBatch, paths: Noise | None = None) -> CohortBatch:
        """Simulated values instead of the measured ones, with the same doses, covariates, times and context.

        Args:
            z: standard normal, ``[subject, latent]``.
            noise: of the residual error, standard normal, ``[subject, observation]``.
            batch: what is dosed and when it is sampled.
            paths: of a stochastic dynamics, the Brownian motions; None for the path without noise.

        Returns:
            The batch with its simulated values, NaN for a subject that could not be solved.
        """
        prediction = self.predict(z, batch, noise=paths)
        noise = noise if prediction.factor is None else prediction.factor * noise
        value = self.error.simulate(prediction.value, batch.endpoint, noise)
        value = torch.where(batch.mask, value, 0.0)
        return dataclasses.replace(batch, value=value, censored=torch.zeros_like(batch.censored))

    def penalty(self, prediction: Prediction, batch: CohortBatch) -> Tensor:
        """Training penalty of the dynamics along the predicted trajectories at the scored records, a scalar sum."""
        trajectory = prediction.trajectory
        since = trajectory.times - batch.start[:, None]
        penalty = self.dynamics.penalty(since, trajectory.states, trajectory.theta, batch.target)
        return self.value_scale.new_zeros(()) if penalty is None else penalty.sum()

    def _check_records(self, batch: CohortBatch) -> None:
        states, outputs = self.dynamics.states, self.endpoints
        wrong = (batch.compartment >= len(states)) | (batch.endpoint >= len(outputs))
        if bool(wrong.any()):
            names = [*dict.fromkeys(batch.ids[k] for k in wrong.any(1).nonzero()[:, 0].tolist())][:5]
            raise ValueError(
                f"subject {', '.join(names)}: an observation of a compartment or endpoint that is not in the model; "
                f"CMT counts {', '.join(states)} from 1, DVID goes to {len(outputs)}. An effect or a metabolite needs "
                "a model that has it; samples of one output need no CMT; ignore leaves rows out"
            )
        elsewhere = batch.observed & (batch.compartment >= 0)
        for output in outputs:
            elsewhere = elsewhere & (batch.compartment != output)
        if bool(elsewhere.any()):
            raise ValueError(_of_no_output(elsewhere, batch, states, outputs))


def _of_no_output(elsewhere: Tensor, batch: CohortBatch, states: Sequence[str], outputs: Sequence[int]) -> str:
    """What is wrong with samples of compartments that are no output: how many there are under each CMT."""
    once = torch.tensor([batch.ids.index(name) == k for k, name in enumerate(batch.ids)], device=batch.device)
    rows = elsewhere & once[:, None]
    found = batch.compartment[rows]
    counts = {int(c): int((found == c).sum()) for c in sorted(set(found.tolist()))}
    said = " and ".join(f"{n} samples under CMT {c + 1} ({states[c]})" for c, n in counts.items())
    names = [batch.ids[k] for k in rows.any(1).nonzero()[:5, 0].tolist()]
    known = ", ".join(f"CMT {k + 1} ({states[k]})" if k < len(states) else f"DVID {k + 1}" for k in outputs)
    one = next(iter(counts)) + 1
    return (
        f"{said} of subject {', '.join(names)}: a model fits the samples of its outputs, here {known}. Leave them out "
        f"(ignore 'CMT == {one} and AMT == 0'), remove their CMT if they are concentrations of the drug "
        f"(map CMT:{one}=.), or use a model with an output for them (outputs of CompartmentModel, or Equations)"
    )

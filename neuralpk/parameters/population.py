"""Population parameters: the distribution of the individual parameters theta between subjects."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from neuralpk.parameters.covariates import CovariateEffect, number
from neuralpk.parameters.distributions import NoVariability, ParameterDistribution, of_range
from neuralpk.parameters.effect_spelling import (
    ChosenEffect,
    Effects,
    effects_by_parameter,
    levels_of,
    power_or_factor,
)
from neuralpk.parameters.network_effect import NetworkEffect
from neuralpk.parameters.reported_numbers import Coordinate, Kind
from neuralpk.part import Part
from neuralpk.scaling import CovariateScale, Scaling

RESIDUAL = "RUV"
"""Parameter of the residual error (residual unexplained variability): the factor by which it differs between
subjects."""

_OMEGA = 0.3


class PopulationParameters(Part, nn.Module):
    """Distribution of theta between subjects: typical values, random effects and covariate effects.

    With z = (z_m, z_n) ~ N(0, I), one z_m for each named parameter that varies, x the standardised covariates, and h
    the transform of each parameter (`ParameterDistribution`, exp by default)::

        theta_named = h(h^-1(typical) + Σ effect(covariates) + eta)     eta = diag(omega)·C·z_m ~ N(0, Omega)
        theta_latent = z_n + B·x

    C is the Cholesky factor of the correlation matrix of eta, the identity unless `correlated`. Parameters with `kappa`
    also differ between the occasions k of a subject, by one z_k for each of them that comes after (z_m, z_n)::

        theta_k = h(h^-1(typical) + Σ effect(covariates) + eta + kappa_k)       kappa_k = kappa·z_k ~ N(0, kappa²)

    RUV, a name in `omega`, `kappa`, `correlated`, `correlation` or `effects`, is a parameter of the residual error: a
    factor of its standard deviation, typically 1, which varies only where omega or kappa name it.

    Args:
        typical: starting values by parameter, in its unit; those left out are taken from the dynamics.
        omega: starting value of the standard deviation of eta, of all parameters or by name (0.3 where left out); 0 for
            a parameter without variability.
        correlated: whether Omega is full; or the names of the parameters that are correlated, which are a block of it.
        correlation: starting values of the correlations of the random effects, as ``{"CL~V1": 0.5}``; those left out
            start at 0. Omega is then full, unless `correlated` names a block.
        omega_prior_sd: standard deviation of log(omega) in a normal prior around its starting value, which keeps omega
            above 0. A number is that of all parameters, and correlations get a weak prior around 0; by name, of
            parameters whose `omega` is given by name, and all else has a flat prior. None for a flat prior (maximum
            likelihood).
        typical_prior_sd: standard deviation of h^-1(typical) in a normal prior around its starting value, by parameter
            whose `typical` is given; those left out have a flat prior.
        learned: whether typical values and Omega are learned.
        fixed: names of single numbers that keep their starting value, as tables have them: ``["KA", "omega KA"]``.
        kappa: starting value of the standard deviation of kappa, the random effect of an occasion, by parameter; those
            left out, and those with 0, do not vary between occasions.
        occasions: column of the event table that says the occasion of each row; default OCC.
        distributions: by parameter; those left out are log-normal.
        effects: covariate effects by parameter: ``{CL: [WT, SEX]}`` chooses each by the values of the covariate
            (`neuralpk.parameters.effect_spelling.ChosenEffect`), ``{CL: {WT: power, AGE: linear}}`` says which,
            ``{CL: {WT: {exponent: 0.75}}}`` gives a starting value, ``{CL: {WT: 0.75}}`` and ``{"CL~WT": 0.75}`` fix
            the coefficient, ``{CL: [PowerEffect("WT", reference=70)]}`` is an object; ``"all"`` for every covariate on
            every parameter.
        kappa_prior_sd: standard deviation of log(kappa) in a normal prior around its starting value, by parameter;
            those left out have a flat prior.
        shared_omega: groups of parameters that have one omega, as ``[["CLR", "CLNR"]]``: each parameter has its own
            random effect, and their standard deviation is one number (`$OMEGA BLOCK(1) SAME` of NONMEM). `omega`,
            `omega_prior_sd` and `fixed` name it by any parameter of the group.

    Attributes:
        log_omega: of every omega that is learned, ``[omega]``; by parameter `log_omega_by_parameter`.
        omega_groups: the parameters that have each of these: one, or a group of `shared_omega`.
        omega_of: position in `log_omega` of the omega of each parameter that varies, ``[varying]``.

    Raises:
        ValueError: an option that is out of its range, by name.
    """

    names: tuple[str, ...] = ()
    location: Tensor
    log_omega: Tensor
    selection: Tensor
    location_start: Tensor
    log_omega_start: Tensor
    factor_entries: Tensor
    log_kappa: Tensor
    log_kappa_start: Tensor
    fixed_kappa: Tensor
    kappa_selection: Tensor
    latent_effects: Tensor
    fixed_location: Tensor
    fixed_omega: Tensor
    omega_of: Tensor

    def __init__(
        self,
        typical: dict[str, float] | None = None,
        omega: float | dict[str, float] = _OMEGA,
        correlated: bool | list[str] = False,
        omega_prior_sd: float | dict[str, float] | None = None,
        typical_prior_sd: dict[str, float] | None = None,
        learned: bool = True,
        distributions: dict[str, ParameterDistribution] | None = None,
        effects: Effects | None = None,
        correlation: dict[str, float] | None = None,
        fixed: list[str] | None = None,
        kappa: dict[str, float] | None = None,
        occasions: str | None = None,
        kappa_prior_sd: dict[str, float] | None = None,
        shared_omega: list[list[str]] | None = None,
    ) -> None:
        super().__init__()
        by_name = dict(omega) if isinstance(omega, Mapping) else {"": omega}
        for option, numbers in (("omega", by_name), ("kappa", kappa or {})):
            for name, value in numbers.items():
                if not 0 <= value < math.inf:
                    raise ValueError(f"{option}{name and '.'}{name} must be 0 or above, not {value}")
        if RESIDUAL in (typical or {}) or RESIDUAL in (distributions or {}):
            raise ValueError(
                f"{RESIDUAL} is a factor of the residual error, typically 1 and log-normal: typical and distributions "
                "do not name it; omega, kappa, correlated, correlation and effects may"
            )
        priors = {"omega": omega_prior_sd, "typical": typical_prior_sd, "kappa": kappa_prior_sd}
        for option, given in ((f"{name}_prior_sd", prior) for name, prior in priors.items()):
            for name, sd in given.items() if isinstance(given, Mapping) else [("", given)]:
                if sd is not None and not 0 < sd < math.inf:
                    raise ValueError(f"{option}{name and '.'}{name} must be above 0, not {sd}")
        for name, distribution in (distributions or {}).items():
            if not isinstance(distribution, ParameterDistribution):
                raise ValueError(f"distributions.{name} must be a ParameterDistribution, not {distribution!r}")
            if not distribution.varies and by_name.get(name, 0.0) > 0:
                raise ValueError(f"{name} has the distribution NoVariability, but omega.{name} is {by_name[name]:g}")
        self.typical_start, self.omega_start = dict(typical or {}), omega
        if not isinstance(correlated, bool) and len(correlated) < 2:
            raise ValueError(f"correlated names two parameters or more that are correlated, not {correlated}")
        self.correlation_start = _by_pair(correlation or {})
        self.shared_omega = _groups(shared_omega or [])
        self.correlated, self.learned = correlated or bool(self.correlation_start), learned
        self.omega_prior_sd, self.typical_prior_sd = omega_prior_sd, dict(typical_prior_sd or {})
        self.asked_fixed = self.fixed = tuple(fixed or ())
        self.distributions = dict(distributions or {})
        self.kappa_start = {name: value for name, value in (kappa or {}).items() if value > 0}
        self.kappa_prior_sd = dict(kappa_prior_sd or {})
        without = sorted({*self.kappa_prior_sd} - {*self.kappa_start})
        if without:
            raise ValueError(f"kappa_prior_sd names {', '.join(without)} without kappa")
        if occasions and not self.kappa_start:
            raise ValueError(f"occasions={occasions} says where kappa is read, but no parameter has a kappa")
        self.occasion_column = (occasions or "OCC") if self.kappa_start else None
        self.asked_effects = _Held(effects_by_parameter(effects))

    def build(
        self,
        guess: Mapping[str, float],
        latent: int,
        scaling: Scaling,
        dtype: torch.dtype | None = None,
        ranges: Mapping[str, tuple[float, float]] | None = None,
        fixed: Sequence[str] = (),
    ) -> None:
        """Make the learned numbers; may be called again, with other data.

        Args:
            guess: starting value of each named parameter, in the order of the dynamics.
            latent: number of further latent dimensions, for a neural field.
            scaling: magnitudes of the training data; its covariates are those of every batch, sorted by name.
            dtype: of the learned numbers; default that of torch.
            fixed: parameters whose typical value is not learned, in addition to those of the constructor.
            ranges: intervals of parameters, which have the distribution of `of_range` unless `distributions` names one.

        Raises:
            ValueError: options that name no parameter or covariate; a typical value outside its distribution.
        """
        dtype = dtype or torch.get_default_dtype()
        self.names, self.scaling, self.latent = tuple(guess), scaling, latent
        self.fixed = tuple(dict.fromkeys((*self.asked_fixed, *fixed)))
        for option, named in (
            ("typical", self.typical_start),
            ("omega", self.omega_start),
            ("kappa", self.kappa_start),
            ("typical_prior_sd", self.typical_prior_sd),
            ("omega_prior_sd", self.omega_prior_sd),
            ("correlated", self.correlated),
            ("shared_omega", [name for group in self.shared_omega for name in group]),
            ("distributions", self.distributions),
        ):
            self._refuse_unknown(option, set(named) if isinstance(named, Mapping | Sequence) else set())
        self.distribution = {
            name: self.distributions.get(name) or of_range(*(ranges or {}).get(name, (0.0, math.inf)))
            for name in self.names
        }
        for name, value in self._omega().items():
            if value == 0 and self.distribution[name].varies:
                self.distribution[name] = NoVariability(self.distribution[name])
        self.varying = tuple(name for name in self.names if self.distribution[name].varies)
        self._check_shared()
        group_of = {name: group for group in self.shared_omega for name in group}
        self.omega_groups = tuple(dict.fromkeys(group_of.get(name, (name,)) for name in self.varying))
        self.changing = tuple(name for name in self.names if name in self.kappa_start)
        self.latent_size = len(self.varying) + latent
        self._check_priors()
        self._build_distribution(dict(guess) | self.typical_start, dtype)
        self._build_effects(dtype)

    @property
    def asks_for_residual(self) -> bool:
        """Whether an option names the parameter `RESIDUAL`."""
        options = (self.omega_start, self.kappa_start, self.correlated, self.asked_effects.value)
        named = {name for one in options if isinstance(one, Mapping | list) for name in one}
        return RESIDUAL in named.union(*self.correlation_start)

    def _omega(self) -> dict[str, float]:
        """Starting value of omega by parameter."""
        start = self.omega_start
        given, usual = (dict(start), _OMEGA) if isinstance(start, Mapping) else ({}, start)
        for group in self.shared_omega:
            of_group = {name: given[name] for name in group if name in given}
            if len({*of_group.values()}) > 1:
                said = ", ".join(f"{name} {value:g}" for name, value in of_group.items())
                raise ValueError(f"shared_omega: {' and '.join(group)} have one omega, but omega says {said}")
            given |= {name: value for value in of_group.values() for name in group}
        return {name: given.get(name, 0.0 if name == RESIDUAL else usual) for name in self.names}

    def _check_shared(self) -> None:
        """Refuse one omega of parameters that do not vary, or whose random effects have different scales."""
        for group in self.shared_omega:
            without = [name for name in group if name not in self.varying]
            if without:
                raise ValueError(f"shared_omega names {', '.join(without)} without variability")
            kinds = {name: type(self.distribution[name]).__name__ for name in group}
            if len({*kinds.values()}) > 1:
                said = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
                raise ValueError(f"shared_omega: one omega is on one scale, but the distributions are {said}")

    def _check_priors(self) -> None:
        """Refuse a prior around a starting value that was not given."""
        of_omega = self.omega_prior_sd if isinstance(self.omega_prior_sd, Mapping) else {}
        given = self.omega_start if isinstance(self.omega_start, Mapping) else ()
        asked = [("typical", name) for name in self.typical_prior_sd if name not in self.typical_start]
        asked += [("omega", name) for name in of_omega if name not in given]
        if asked:
            option, name = asked[0]
            raise ValueError(f"{option}_prior_sd.{name} is the width of a prior around {option}.{name}: give that too")
        flat = sorted(set(of_omega) - set(self.varying))
        if flat:
            raise ValueError(f"omega_prior_sd names {', '.join(flat)} without variability")
        for names in self.omega_groups:
            twice = [name for name in names if name in of_omega]
            if len(twice) > 1:
                raise ValueError(f"omega_prior_sd names {' and '.join(twice)}, which have one omega: name one of them")

    def _refuse_unknown(self, option: str, named: set[str]) -> None:
        unknown = sorted(named - set(self.names))
        if unknown:
            known = ", ".join(self.names) or "none"
            raise ValueError(f"{option} names {', '.join(unknown)}; the named parameters of these dynamics are {known}")

    def _build_distribution(self, typical: Mapping[str, float], dtype: torch.dtype) -> None:
        start = [
            self.distribution[name].inverse(torch.tensor(float(typical[name]), dtype=torch.float64))
            for name in self.names
        ]
        for name, x in zip(self.names, start, strict=True):
            if not bool(torch.isfinite(x)):
                kind = self.distribution[name]
                raise ValueError(f"typical.{name} must be {kind.support} ({type(kind).__name__}), not {typical[name]}")
        location = torch.stack(start).to(dtype) if start else torch.zeros(0, dtype=dtype)
        n, omega = len(self.varying), self._omega()
        log_omega = torch.tensor([math.log(omega[names[0]]) for names in self.omega_groups], dtype=dtype)
        places = [k for name in self.varying for k, names in enumerate(self.omega_groups) if name in names]
        self.register_buffer("omega_of", torch.tensor(places, dtype=torch.long), persistent=False)
        self._hold("location", location.clone(), self.learned)
        self._hold("log_omega", log_omega.clone(), self.learned)
        entries = self._entries_of(self.correlation_start).to(dtype) if self.correlated else torch.zeros(0, dtype=dtype)
        self._hold("factor_entries", entries, self.learned)
        selection = torch.zeros(n, len(self.names), dtype=dtype)
        for k, name in enumerate(self.varying):
            selection[k, self.names.index(name)] = 1.0
        self.register_buffer("selection", selection, persistent=False)
        self.register_buffer("location_start", location, persistent=False)
        self.register_buffer("log_omega_start", log_omega, persistent=False)
        log_kappa = torch.tensor([math.log(self.kappa_start[name]) for name in self.changing], dtype=dtype)
        self._hold("log_kappa", log_kappa.clone(), self.learned)
        self.register_buffer("log_kappa_start", log_kappa, persistent=False)
        kappa_selection = torch.zeros(len(self.changing), len(self.names) + self.latent, dtype=dtype)
        for k, name in enumerate(self.changing):
            kappa_selection[k, self.names.index(name)] = 1.0
        self.register_buffer("kappa_selection", kappa_selection, persistent=False)
        omegas, kappas = ([f"{kind} {one}" for one in names] for kind, names in self._spreads().items())
        fixable = [*self.names, *omegas, *kappas]
        unknown = [name for name in self.fixed if name not in fixable]
        if unknown:
            raise ValueError(f"fixed names {', '.join(unknown)}; what can be fixed is {', '.join(fixable)}")
        for group in self.shared_omega:
            of_group = [f"omega {name}" for name in group]
            if {*of_group} & {*self.fixed}:
                self.fixed = tuple(dict.fromkeys((*self.fixed, *of_group)))
        firsts = [f"omega {names[0]}" for names in self.omega_groups]
        for name, numbers in (("location", self.names), ("omega", firsts), ("kappa", kappas)):
            held = torch.tensor([one in self.fixed for one in numbers], dtype=torch.bool)
            self.register_buffer(f"fixed_{name}", held, persistent=False)

    def _spreads(self) -> dict[str, tuple[str, ...]]:
        """Names of the parameters with each kind of random effect."""
        return {"omega": self.varying, "kappa": self.changing}

    def occasions_in(self, asked: str | None) -> str | None:
        """Column of a table that says the occasions.

        Args:
            asked: column that the reader of the table was asked for; None for that of kappa.

        Raises:
            ValueError: another one than that of kappa.
        """
        if asked and self.occasion_column and asked != self.occasion_column:
            raise ValueError(
                f"the table is read with occasion={asked}, and kappa is by {self.occasion_column}: give "
                f"occasions={asked} to the parameters too"
            )
        return asked or self.occasion_column

    @property
    def asked_covariates(self) -> list[str] | None:
        """Names of the covariates that the effects ask for; None for all that the data have."""
        asked = self.asked_effects.value
        if asked == "all":
            return None
        return sorted({name for items in asked.values() for item in items for name in item.covariates})

    def _build_effects(self, dtype: torch.dtype) -> None:
        asked, covariates = self.asked_effects.value, sorted(self.scaling.covariates)
        if asked == "all":
            of_dynamics = [name for name in self.names if name != RESIDUAL]
            asked = {name: [ChosenEffect(covariate) for covariate in covariates] for name in of_dynamics}
        self._refuse_unknown("effects", set(asked))
        self.effects = nn.ModuleDict()
        self._columns: dict[str, list[list[int]]] = {}
        for parameter, items in asked.items():
            effects = [effect for item in items for effect in self._built(parameter, item)]
            read = [effect.covariates for effect in effects]
            twice = next((one for one in read if read.count(one) > 1), None)
            if twice:
                raise ValueError(f"effects name {parameter}~{'+'.join(twice)} twice")
            if effects:
                self.effects[parameter] = nn.ModuleList(effects).to(dtype)
                self._columns[parameter] = [[covariates.index(name) for name in one] for one in read]
        self._hold("latent_effects", torch.zeros(self.latent, len(covariates), dtype=dtype), True)

    def _built(self, parameter: str, asked: ChosenEffect | CovariateEffect) -> list[CovariateEffect]:
        try:
            if isinstance(asked, CovariateEffect):
                for name in asked.covariates:
                    levels = levels_of(name, self.scaling)
                    if levels and name not in self.scaling.covariates:
                        raise ValueError(
                            f"{name} is a text with the levels {', '.join(levels)}: its effect is categorical, or one "
                            f"of a level, as of {name}={next(iter(levels))}"
                        )
                    self.scaling.covariate(name)
                effects = [copy.deepcopy(asked)]
            else:
                effects = asked.effects(self.scaling)
            for effect in effects:
                effect.build(self.scaling)
        except ValueError as error:
            raise ValueError(f"effects of {parameter}: {error}") from error
        return effects

    def _hold(self, name: str, tensor: Tensor, learned: bool) -> None:
        """A learned tensor; empty ones are no parameters, because several devices would wait for their gradients."""
        for held in (self._parameters, self._buffers):
            held.pop(name, None)
        if tensor.numel():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=learned))
        else:
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def from_values(
        cls,
        typical: Mapping[str, float],
        omega: Mapping[str, float],
        effects: Mapping[tuple[str, str], float | CovariateEffect] | None = None,
        correlation: Mapping[tuple[str, str], float] | None = None,
        references: Mapping[str, float] | None = None,
        distributions: Mapping[str, ParameterDistribution] | None = None,
        scaling: Scaling | None = None,
        kappa: Mapping[str, float] | None = None,
        occasions: str | None = None,
    ) -> PopulationParameters:
        """Population with the values of a paper or of a fit, in float64 and fixed: it needs no `build`, and a model
        that is built with it leaves the values as they are.

        Args:
            typical: value of each named parameter, in its unit and in the order of the dynamics.
            omega: standard deviation of eta by parameter; those left out do not vary.
            effects: (parameter, covariate) to an effect, or to the exponent of (c/reference), or to the logarithm of
                the factor of a 0-or-1 covariate, which has no reference.
            correlation: (parameter, parameter) to the correlation of their etas; those left out have none.
            references: reference value by covariate.
            distributions: by parameter; those left out are log-normal.
            scaling: whose covariates those of every batch are; default those of the effects only.
            kappa: standard deviation of kappa by parameter; those left out do not vary between occasions.
            occasions: column of the event table that says the occasion of each row; default OCC.

        Raises:
            ValueError: effects or correlations of a parameter that does not exist or vary; correlations that no random
                effects can have.
        """
        asked: dict[str, list[CovariateEffect]] = {}
        for (parameter, covariate), effect in (effects or {}).items():
            if not isinstance(effect, CovariateEffect):
                effect = power_or_factor(covariate, effect, (references or {}).get(covariate))
            asked.setdefault(parameter, []).append(effect)
        read = {name for items in asked.values() for effect in items for name in effect.covariates}
        # given references and coefficients need no data: positive, so that every kind of effect can be built
        covariates = {name: CovariateScale((references or {}).get(name, 1.0), 1.0, True) for name in read}
        made = cls(
            {name: value for name, value in typical.items() if name != RESIDUAL},
            {name: omega.get(name, 0.0) for name in typical},
            learned=False,
            distributions=dict(distributions or {}),
            effects=cast(Effects, asked),
            correlation={f"{a}~{b}": value for (a, b), value in (correlation or {}).items()},
            kappa=dict(kappa or {}),
            occasions=occasions,
        )
        made.build(typical, 0, scaling or Scaling(covariates=covariates), torch.float64)
        return made.requires_grad_(False)

    def _entries_of(self, correlation: Mapping[tuple[str, str], float]) -> Tensor:
        without = [] if isinstance(self.correlated, bool) else set(self.correlated) - set(self.varying)
        if without:
            raise ValueError(f"correlated names {', '.join(sorted(without))} without variability")
        matrix = torch.eye(len(self.varying), dtype=torch.float64)
        for (a, b), value in correlation.items():
            if not {a, b} <= set(self.varying):
                raise ValueError(f"correlation {a}~{b}: both must have variability; {', '.join(self.varying)} have")
            if not isinstance(self.correlated, bool) and not {a, b} <= set(self.correlated):
                raise ValueError(f"correlation {a}~{b}: correlated names {', '.join(self.correlated)} alone")
            one, other = self.varying.index(a), self.varying.index(b)
            matrix[one, other] = matrix[other, one] = value
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if bool(failed):
            raise ValueError(f"no random effects have all these correlations: {dict(correlation)}")
        entries: Tensor = (factor / factor.diagonal()[:, None])[self._pair_indices()]
        return entries

    def _pair_indices(self) -> tuple[Tensor, Tensor]:
        """Rows and columns of the correlations that are learned. Outside a block the factor has 0, as Omega has."""
        rows, columns = torch.tril_indices(len(self.varying), len(self.varying), -1)
        if not isinstance(self.correlated, bool):
            block = torch.tensor([name in self.correlated for name in self.varying], dtype=torch.bool)
            inside = block[rows] & block[columns]
            rows, columns = rows[inside], columns[inside]
        return rows, columns

    def pairs(self) -> list[tuple[str, str]]:
        """Pairs of parameters with correlated random effects, in the order of `correlations`."""
        indices = zip(*(part.tolist() for part in self._pair_indices()), strict=True)
        return [(self.varying[b], self.varying[a]) for a, b in indices] if self.factor_entries.numel() else []

    def _correlation_factor(self) -> Tensor:
        """Lower Cholesky factor of the correlation matrix, ``[varying, varying]``: its rows have length 1."""
        factor = torch.eye(len(self.varying), dtype=self.log_omega.dtype, device=self.log_omega.device)
        factor = factor.index_put(self._pair_indices(), self.factor_entries)
        unit: Tensor = factor / factor.norm(dim=1, keepdim=True)
        return unit

    def correlations(self) -> Tensor:
        """Correlations of the random effects, ``[pair]`` in the order of `pairs`."""
        if not self.factor_entries.numel():
            return self.factor_entries
        factor = self._correlation_factor()
        return (factor @ factor.T)[self._pair_indices()]

    # a gradient that a fixed number never gets lets no optimiser move it, also in a copy of the model

    def _location(self) -> Tensor:
        """h^-1(typical), without a gradient where it is fixed."""
        return torch.where(self.fixed_location, self.location.detach(), self.location) if self.fixed else self.location

    def log_omega_by_parameter(self) -> Tensor:
        """log(omega) of the parameters in `varying`, ``[varying]``, without a gradient where it is fixed."""
        log_omega: Tensor = self.log_omega
        if self.fixed:
            log_omega = torch.where(self.fixed_omega, log_omega.detach(), log_omega)
        return log_omega[self.omega_of]

    def eta(self, z: Tensor) -> Tensor:
        """Random effects of the parameters in `varying`, ``[..., varying]``, of z ``[..., latent]``."""
        standard = z[..., : len(self.varying)]
        if self.factor_entries.numel():
            standard = standard @ self._correlation_factor().T
        return self.log_omega_by_parameter().exp() * standard

    def _log_kappa(self) -> Tensor:
        """log(kappa), without a gradient where it is fixed."""
        return torch.where(self.fixed_kappa, self.log_kappa.detach(), self.log_kappa) if self.fixed else self.log_kappa

    def kappa(self, z: Tensor) -> Tensor:
        """Random effects of the occasions on the parameters in `changing`, ``[..., occasion, changing]``, of z
        ``[..., latent]``; of z without latents of occasions there is no occasion."""
        by_occasion = z[..., self.latent_size :].reshape(*z.shape[:-1], -1, len(self.changing))
        return by_occasion * self._log_kappa().exp()

    def standardise(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """z of random effects, both ``[..., varying]``, and log |dz/deta|, a scalar."""
        log_omega = self.log_omega_by_parameter()
        scaled, log_volume = eta / log_omega.exp(), -log_omega.sum()
        if not self.factor_entries.numel():
            return scaled, log_volume
        factor = self._correlation_factor()
        z = torch.linalg.solve_triangular(factor, scaled.mT, upper=False).mT
        return z, log_volume - factor.diagonal().log().sum()

    def log_prior(self) -> Tensor:
        """log p(typical, Omega, weights of covariate networks) up to a constant, a scalar; 0 where it is flat."""
        total = self.location.new_zeros(())
        log_omega = self.log_omega_by_parameter()
        for name, effect in self.networks_by_parameter():
            total = total + effect.log_prior()
            if name in self.varying:
                total = total + effect.log_volume(log_omega[self.varying.index(name)])
        if not self.learned:
            return total
        for name, sd in self.typical_prior_sd.items():
            k = self.names.index(name)
            total = total - 0.5 * ((self._location()[k] - self.location_start[k]) / sd) ** 2
        for name, sd in self.kappa_prior_sd.items():
            k = self.changing.index(name)
            total = total - 0.5 * ((self._log_kappa()[k] - self.log_kappa_start[k]) / sd) ** 2
        distance = self.log_omega_by_parameter() - self.log_omega_start[self.omega_of]
        if isinstance(self.omega_prior_sd, Mapping):
            for name, sd in self.omega_prior_sd.items():
                total = total - 0.5 * (distance[self.varying.index(name)] / sd) ** 2
        elif self.omega_prior_sd is not None:
            firsts = [self.varying.index(names[0]) for names in self.omega_groups]
            distance = distance[firsts] / self.omega_prior_sd
            total = total - 0.5 * (distance.square().sum() + self.factor_entries.square().sum())
        return total

    def centre(self, covariates: Tensor) -> Tensor:
        """Parameters of the typical subject with these covariates on the scale of h, ``[..., parameter]`` of
        ``[..., covariate]``."""
        shifts = []
        for name in self.names:
            shift = covariates.new_zeros(covariates.shape[:-1])
            for effect, columns in self._effects_on(name):
                shift = shift + effect(covariates[..., columns])
            shifts.append(shift)
        total: Tensor = self._location() + torch.stack(shifts, dim=-1) if shifts else covariates[..., :0]
        return total

    def _effects_on(self, parameter: str) -> Iterator[tuple[CovariateEffect, list[int]]]:
        if parameter in self.effects:
            yield from zip(self.effects[parameter], self._columns[parameter], strict=True)  # type: ignore[call-overload]

    def unconstrained(self, z: Tensor, covariates: Tensor, occasions: Tensor | None = None) -> Tensor:
        """Individual parameters on the scale of h, ``[..., parameter + latent]``, without kappa; with latents of
        occasions, these follow as ``[..., occasion · changing]``: kappa, or z of an occasion that is padding.

        Args:
            z: ``[..., latent]``.
            covariates: as recorded, ``[..., covariate]``; the leading axes of both broadcast.
            occasions: those that are no padding, bool ``[..., occasion]``; by default all are.
        """
        named = self.centre(covariates) + self.eta(z) @ self.selection
        shift = self.scaling.standardise(covariates) @ self.latent_effects.T
        of_subject, of_occasions = z[..., len(self.varying) : self.latent_size], z[..., self.latent_size :]
        parts = [named, of_subject + shift]
        if of_occasions.shape[-1]:
            parts.append(of_occasions * self._kappas(of_occasions, occasions).exp())
        return torch.cat(parts, dim=-1)

    def _kappas(self, of_occasions: Tensor, occasions: Tensor | None) -> Tensor:
        """log(kappa) of each latent of the occasions, ``[..., occasion · changing]``, 0 of padding."""
        log_kappa, count = self._log_kappa(), of_occasions.shape[-1] // len(self.changing)
        if occasions is None:
            return log_kappa.repeat(count)
        return torch.where(occasions[..., None], log_kappa, 0.0).flatten(-2)

    def z_of(self, unconstrained: Tensor, covariates: Tensor, occasions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """z of individual parameters: the inverse of `unconstrained` in all parameters that vary.

        Args:
            unconstrained: as of `unconstrained`.
            covariates: as recorded, ``[..., covariate]``.
            occasions: as of `unconstrained`.

        Returns:
            z, ``[..., latent]``, and log |dz/dx| with x the unconstrained parameters, a scalar, or with latents of
            occasions ``[...]``. log |dz/dtheta| differs from it by −Σ log |h'(x)|, which does not depend on any learned
            number.
        """
        n = len(self.names)
        eta = (unconstrained[..., :n] - self.centre(covariates)) @ self.selection.T
        z, log_volume = self.standardise(eta)
        shift = self.scaling.standardise(covariates) @ self.latent_effects.T
        of_subject, of_occasions = unconstrained[..., n : n + self.latent], unconstrained[..., n + self.latent :]
        parts = [z, of_subject - shift]
        if of_occasions.shape[-1]:
            kappas = self._kappas(of_occasions, occasions)
            parts.append(of_occasions / kappas.exp())
            log_volume = log_volume - kappas.sum(-1)
        return torch.cat(parts, dim=-1), log_volume

    def transform(self, unconstrained: Tensor) -> Tensor:
        """theta of parameters on the scale of h, both ``[..., parameter + latent]``; latent dimensions stay."""
        parts = unconstrained.unbind(-1)
        kinds = self.distribution.values()
        if not self.names:
            return unconstrained
        named = [kind.transform(part) for kind, part in zip(kinds, parts, strict=False)]
        return torch.stack([*named, *parts[len(named) :]], dim=-1)

    def forward(self, z: Tensor, covariates: Tensor, occasion: Tensor | None = None) -> Tensor:
        """Individual parameters.

        Args:
            z: ``[subject, latent]``; without latents of occasions every kappa is 0.
            covariates: as recorded, ``[subject, period, covariate]``.
            occasion: of each period, counted from 0, ``[subject, period]``; needed where z has latents of occasions.

        Returns:
            theta, ``[subject, period, parameter]``.
        """
        x = self.unconstrained(z[:, None, : self.latent_size], covariates)
        if z.shape[1] > self.latent_size:
            assert occasion is not None
            kappa = self.kappa(z).gather(1, occasion[..., None].expand(-1, -1, len(self.changing)))
            x = x + kappa @ self.kappa_selection
        return self.transform(x)

    def typical_values(self) -> dict[str, float]:
        """Typical value by parameter, in its unit."""
        values = self.transform(self.location.detach()) if self.names else self.location
        return {name: number(value) for name, value in zip(self.names, values, strict=True)}

    def omega_values(self) -> dict[str, float]:
        """Standard deviation of eta by parameter, of those that vary."""
        omega = self.log_omega_by_parameter().detach().exp()
        return {name: number(value) for name, value in zip(self.varying, omega, strict=True)}

    def kappa_values(self) -> dict[str, float]:
        """Standard deviation of kappa by parameter, of those that vary between occasions."""
        kappa = self.log_kappa.detach().exp()
        return {name: number(value) for name, value in zip(self.changing, kappa, strict=True)}

    def effects_by_parameter(self) -> Iterator[tuple[str, CovariateEffect]]:
        """Every covariate effect with the parameter that it acts on."""
        for name in self.names:
            for effect, _ in self._effects_on(name):
                yield name, effect

    def networks_by_parameter(self) -> list[tuple[str, NetworkEffect]]:
        """The learned networks among the covariate effects, with the parameters that they act on."""
        found = self.effects_by_parameter()
        return [(name, one) for name, one in found if isinstance(one, NetworkEffect) and not one.fixed]

    def network_effects(self) -> list[NetworkEffect]:
        """The same without the parameters."""
        return [effect for _, effect in self.networks_by_parameter()]

    def columns_of(self, effect: CovariateEffect) -> list[int]:
        """Places of the covariates of an effect among all."""
        names = sorted(self.scaling.covariates)
        return [names.index(name) for name in effect.covariates]

    def take_effects(self, other: PopulationParameters) -> None:
        """Copy covariate effects and correlations of another population with the same parameters and covariates."""
        self.effects.load_state_dict(other.effects.state_dict())
        with torch.no_grad():
            self.latent_effects.copy_(other.latent_effects)
            self.factor_entries.copy_(other.factor_entries)

    def coordinates(self, fixed: bool = False) -> list[Coordinate]:
        """The learned numbers: typical values, omega, kappa, correlations, coefficients of covariate effects.

        Args:
            fixed: whether the numbers in `fixed` are among them.
        """
        found = []
        if self.learned:
            found += [
                Coordinate(
                    "typical",
                    name,
                    self.location,
                    k,
                    reported=self.distribution[name].transform,
                    distribution=self.distribution[name],
                    fixed=name in self.fixed,
                )
                for k, name in enumerate(self.names)
            ]
            of_kappa = tuple((name,) for name in self.changing)
            spreads: list[tuple[Kind, Tensor, tuple[tuple[str, ...], ...]]]
            spreads = [("omega", self.log_omega, self.omega_groups), ("kappa", self.log_kappa, of_kappa)]
            found += [
                Coordinate(
                    kind,
                    name,
                    tensor,
                    k,
                    sharing=others,
                    reported=torch.exp,
                    distribution=self.distribution[name],
                    fixed=f"{kind} {name}" in self.fixed,
                )
                for kind, tensor, groups in spreads
                for k, (name, *others) in enumerate(groups)
            ]
            found += [
                Coordinate("correlation", a, self.factor_entries, k, other=b) for k, (a, b) in enumerate(self.pairs())
            ]
        for parameter, effect in self.effects_by_parameter():
            coefficients: dict[str, Tensor] = dict(effect.coefficients())
            held = effect.fixed_coefficients()
            coefficients, references = coefficients | held, effect.references()
            other = "+".join(effect.covariates)
            found += [
                Coordinate(
                    "effect",
                    parameter,
                    tensor,
                    0,
                    other=other,
                    coefficient=name if len(coefficients) > 1 else "",
                    reference=references.get(other),
                    reported=partial(effect.reported, name),
                    fixed=name in held,
                )
                for name, tensor in coefficients.items()
            ]
        return [one for one in found if fixed or not one.fixed]

    def unreported(self) -> int:
        """Number of learned numbers that are no coordinates: effects on latent dimensions, weights of networks."""
        weights = 0
        for _, effect in self.effects_by_parameter():
            named = {id(tensor) for tensor in effect.coefficients().values()}
            weights += sum(tensor.numel() for tensor in effect.parameters() if id(tensor) not in named)
        return self.latent_effects.numel() + weights


def _by_pair(correlation: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """Correlations by pair of parameters."""
    found = {}
    for name, value in correlation.items():
        a, *others = (part.strip() for part in name.split("~"))
        if len(others) != 1 or not -1 < value < 1:
            raise ValueError(
                f"correlation is {{'PARAMETER~PARAMETER': number between -1 and 1}}, as in {{'CL~V1': 0.5}}; got "
                f"{name!r}: {value}"
            )
        found[a, others[0]] = value
    return found


def _groups(shared_omega: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
    """Groups of parameters that have one omega."""
    for group in shared_omega:
        if isinstance(group, str) or len(group) < 2:
            raise ValueError(
                f"shared_omega is groups of two parameters or more, as in [[CLR, CLNR]]; {group!r} is no such group"
            )
    named = [name for group in shared_omega for name in group]
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice:
        raise ValueError(f"shared_omega names {twice} twice")
    return tuple(tuple(group) for group in shared_omega)


class _Held:
    """Box around a value that nn.Module must not register."""

    def __init__(self, value: Any) -> None:
        self.value = value

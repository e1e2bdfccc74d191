"""Networks of covariates: a learned function of several covariates as the effect on one parameter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralpk.parameters.covariates import CovariateEffect, number
from neuralpk.scaling import Scaling

_SLOPE = 1.5  # of a hidden unit at its centre, per standard deviation of the covariate
_RANGE = 2.0  # in standard deviations: the centres of the hidden units lie within it
# standard deviation of each part before the data say more, for a covariate one standard deviation from its centre
_FIRST_SD = {"line": 0.3, "curve": 0.2, "joint": 0.1}


class NetworkEffect(CovariateEffect):
    """Network of one or more covariates, 0 at their reference::

        shift = Σ_k v_k·(f_k(x) − f_k(0))        f_k: x_j, tanh(s·(x_j − m)), tanh(w·x − m)        v_k ~ N(0, sd²)

    with x the standardised covariates: log(c/centre)/spread of a positive one, c of one that is 0 or 1, else
    (c − centre)/spread. The first layer is fixed: each covariate by itself (which is a power of a positive one), hidden
    units along its range, and hidden units of all covariates together. The last layer v is learned. So the likelihood
    has one maximum in v, a fit is that of a population without a network (Newton's method, with its test of
    convergence), and v has a covariance.

    Each covariate's line, each covariate's curve and the joint part have a prior standard deviation of their own. A fit
    takes those that make the training data most probable with v integrated out (MacKay 1992; restricted maximum
    likelihood of smoothing), so that a part that the data do not need shrinks to nothing.

    Args:
        covariates: their names.
        hidden: hidden units of each covariate, and of all together.
        weights: v; None for 0, from which a fit begins. With weights the effect is fixed.
        centre: of each covariate, where the effect is 0; None for the centre of the training data (0 of one that is 0
            or 1).
        spread: of each covariate on the scale of the network; None for that of the training data.
        positive: whether the logarithm of each covariate is read; None for where all values are positive.

    Raises:
        ValueError: no covariate, one twice, no hidden unit, or lists of a wrong length.
    """

    origin: Tensor
    scale: Tensor
    logarithmic: Tensor
    curved: Tensor
    first_sd: Tensor
    prior_sd: Tensor
    directions: Tensor
    offsets: Tensor
    gains: Tensor
    part: Tensor
    information: Tensor
    log_omega_there: Tensor
    held_shift: Tensor | None = None
    """Takes the place of the shift while an estimator differentiates in it."""

    def __init__(
        self,
        covariates: list[str],
        hidden: int = 8,
        weights: list[float] | None = None,
        centre: list[float] | None = None,
        spread: list[float] | None = None,
        positive: list[bool] | None = None,
    ) -> None:
        if not covariates or len(set(covariates)) < len(covariates):
            raise ValueError(f"NetworkEffect reads one covariate or more, each once; got {', '.join(covariates)}")
        if hidden < 1:
            raise ValueError(f"NetworkEffect: hidden must be 1 or more, not {hidden}")
        super().__init__(covariates)
        size = len(covariates)
        given = {"centre": centre, "spread": spread, "positive": positive}
        for name, values in given.items():
            if values is not None and len(values) != size:
                raise ValueError(f"NetworkEffect of {', '.join(covariates)}: {name} has {len(values)} values")
        if weights is not None and None in given.values():
            raise ValueError(f"NetworkEffect of {', '.join(covariates)}: weights need centre, spread and positive")
        self.given, self.hidden, self.fixed = given, hidden, weights is not None
        self._hold_first_layer(size, hidden)
        self.register_buffer("origin", torch.tensor(centre or [0.0] * size, dtype=torch.float64))
        self.register_buffer("scale", torch.tensor(spread or [1.0] * size, dtype=torch.float64))
        self.register_buffer("logarithmic", torch.tensor(positive or [False] * size))
        count = len(self.part)
        if weights is not None and len(weights) != count:
            raise ValueError(
                f"NetworkEffect of {', '.join(covariates)} with {hidden} hidden units has {count} weights, not "
                f"{len(weights)}"
            )
        start = torch.tensor(weights or [0.0] * count, dtype=torch.float64)
        if weights is None:
            self.weight = nn.Parameter(start)
        else:
            self.register_buffer("weight", start)

    def _hold_first_layer(self, size: int, hidden: int) -> None:
        """Units of one covariate, evenly along its range, and of all, in directions that are spread evenly."""
        even = _RANGE * (2 * (torch.arange(hidden, dtype=torch.float64) + 0.5) / hidden - 1)
        directions = [torch.eye(size, dtype=torch.float64).repeat_interleave(hidden, 0)]
        offsets = [even.repeat(size)]
        if size > 1:
            # quasi-random, not random: the same effect is the same function everywhere
            sobol = torch.quasirandom.SobolEngine(size + 1, scramble=True, seed=0)  # type: ignore[no-untyped-call]
            points: Tensor = sobol.draw(hidden, dtype=torch.float64)
            normal = torch.special.ndtri(points[:, :size].clamp(1e-3, 1 - 1e-3))
            directions.append(normal / normal.norm(dim=1, keepdim=True))
            offsets.append(_RANGE * (2 * points[:, size] - 1))
        of_units, places = torch.cat(directions), torch.cat(offsets)
        self.register_buffer("directions", _SLOPE * of_units)
        self.register_buffer("offsets", _SLOPE * places)
        # the line of each covariate, the curve of each, and the joint part
        curves = size + torch.arange(size).repeat_interleave(hidden)
        joint = torch.full((len(of_units) - len(curves),), 2 * size)
        self.register_buffer("part", torch.cat([torch.arange(size), curves, joint]), persistent=False)
        names = ["line"] * size + ["curve"] * size + ["joint"] * (size > 1)
        first = torch.tensor([_FIRST_SD[name] for name in names], dtype=torch.float64)
        self.register_buffer("first_sd", first, persistent=False)
        self.register_buffer("prior_sd", first.clone())
        self.register_buffer("information", torch.zeros(len(self.part), dtype=torch.float64))
        self.register_buffer("log_omega_there", torch.zeros((), dtype=torch.float64))
        gains = torch.ones(len(self.part), dtype=torch.float64)
        far = torch.tanh(_SLOPE * (of_units.norm(dim=1) - places)) - torch.tanh(-_SLOPE * places)
        for part in range(size, len(names)):
            units = far[self.part[size:] == part]
            gains[size:][self.part[size:] == part] = 1 / units.norm()
        self.register_buffer("gains", gains, persistent=False)

    @property
    def parts(self) -> list[str]:
        """Names of the parts with a prior standard deviation of their own, in the order of `prior_sd`."""
        found = [f"{name} {kind}" for kind in ("line", "curve") for name in self.covariates]
        return found + ["joint"] * (len(self.covariates) > 1)

    def build(self, scaling: Scaling) -> None:
        for k, name in enumerate(self.covariates):
            scale = scaling.covariate(name)
            found = (0.0, 1.0, False) if scale.binary else (scale.centre, scale.spread, scale.positive)
            chosen = zip(self.given.values(), found, strict=True)
            values = [at if of is None else of[k] for of, at in chosen]
            self.origin[k], self.scale[k], self.logarithmic[k] = values

    def features(self, covariates: Tensor) -> Tensor:
        """What the last layer combines, ``[..., weight]``, of recorded covariates ``[..., covariate]``."""
        logs = torch.log(torch.where(self.logarithmic, covariates / self.origin, 1.0))
        x = torch.where(self.logarithmic, logs, covariates - self.origin) / self.scale
        units = torch.tanh(x @ self.directions.T - self.offsets) - torch.tanh(-self.offsets)
        return torch.cat([x, units], dim=-1) * self.gains

    def forward(self, covariates: Tensor) -> Tensor:
        if self.held_shift is not None:
            return self.held_shift
        shift: Tensor = self.features(covariates) @ self.weight
        return shift

    def precision(self) -> Tensor:
        """Precision of each weight in its prior, ``[weight]``."""
        return self.prior_sd[self.part].square().reciprocal()

    def log_prior(self) -> Tensor:
        """log p(v) up to a constant, a scalar."""
        return -0.5 * (self.weight.square() * self.precision()).sum()

    def log_volume(self, log_omega: Tensor) -> Tensor:
        """log of the volume of the posterior of v over that of its prior, a scalar: what v explains of the differences
        between subjects is no sign of a small omega (restricted maximum likelihood). The information of the data on v
        is inversely proportional to the variance omega² of what it leaves.

        Args:
            log_omega: of the parameter that the effect acts on.
        """
        ratio = torch.exp(2 * (self.log_omega_there - log_omega))
        return -0.5 * torch.log1p(self.information * ratio).sum()

    @property
    def freedom(self) -> float:
        """Effective number of weights, from 0 to their number."""
        return float((self.information / (1 + self.information)).sum())

    @torch.no_grad()
    def take_prior(self, sd: Tensor, information: Tensor, log_omega: Tensor) -> None:
        """Set the prior of v.

        Args:
            sd: prior standard deviations, ``[part]``.
            information: of the data on v, in units of that of the prior: its eigenvalues, ``[weight]``.
            log_omega: of the parameter, to which this information belongs.
        """
        self.prior_sd.copy_(sd)
        self.information.copy_(information)
        self.log_omega_there.copy_(log_omega)

    def coefficients(self) -> dict[str, nn.Parameter]:
        return {}

    def references(self) -> dict[str, float | str]:
        return {name: number(self.origin[k]) for k, name in enumerate(self.covariates)}

    def fault(self, value: float) -> str | None:
        return "it must be above 0" if bool(self.logarithmic.all()) and not value > 0 else None

    def fitted(self) -> CovariateEffect:
        return NetworkEffect(
            list(self.covariates),
            self.hidden,
            [number(value) for value in self.weight],
            [number(value) for value in self.origin],
            [number(value) for value in self.scale],
            [bool(value) for value in self.logarithmic],
        )

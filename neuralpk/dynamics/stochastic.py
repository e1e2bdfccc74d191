"""Stochastic dynamics: dY = f(t, Y, theta) dt + g(t, theta) dW."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralpk.dynamics.base import Dynamics
from neuralpk.dynamics.compartment import CompartmentModel
from neuralpk.dynamics.population import LotkaVolterra
from neuralpk.scaling import Scaling


class StochasticDynamics(Dynamics):
    """A system of stochastic differential equations::

        dY = f(t, Y, theta) dt + g(t, theta) dW

    `forward` is the drift f. Some states have a Brownian motion of their own, the others none. A system is written in
    coordinates in which its noise is additive, as its logarithm where noise is multiplicative (Lamperti's transform):
    there Itô's and Stratonovich's integral agree, and `solve` has methods of higher order.

    Args:
        sigma: first guess of the size of the noise, per square root of time, for every noisy state.

    Attributes:
        noisy: indices of the states with noise.

    Raises:
        ValueError: a sigma that is not positive.
    """

    noisy: tuple[int, ...] = (0,)

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not sigma > 0:
            raise ValueError(f"the size of the noise must be positive, not {sigma}")
        self.log_sigma = nn.Parameter(torch.full((len(self.noisy),), float(sigma)).log())

    @property
    def noise(self) -> dict[str, Tensor]:
        """What the noise is like, by name, each a scalar; the same for all subjects."""
        names = [f"sigma_{self.states[k]}" for k in self.noisy]
        return dict(zip(names, self.log_sigma.exp().unbind(), strict=True))

    def diffusion(self, t: Tensor, theta: Tensor) -> Tensor:
        """g at the noisy states, ``[subject, noise]``; arguments as for the drift.

        Here sigma, the same for all subjects.
        """
        return self.log_sigma.exp().expand(len(theta), -1)

    def foresee(self, y: Tensor, drift: Tensor, span: Tensor) -> Tensor:
        """About where the drift alone takes the state within a time, ``[subject, state]``.

        Args:
            y: state, ``[subject, state]``.
            drift: f(y), ``[subject, state]``.
            span: time, ``[subject, 1]``.
        """
        return y + drift * span

    def size(self, scaling: Scaling) -> tuple[float, ...]:
        """Magnitude of each state in data of this scale."""
        return (1.0,) * len(self.states)

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return {name: value.expand(theta.shape[:-1]) for name, value in self.noise.items()}


class OrnsteinUhlenbeck(StochasticDynamics):
    """A quantity that is drawn back to its mean (Uhlenbeck and Ornstein 1930)::

        dx = rate·(mean − x) dt + sigma dW

    Parameters: rate (1/time), mean, and start, the value at the first record. Given x(0) the value at t is normal with
    mean ``mean + (x(0) − mean)·exp(−rate·t)`` and variance ``sigma²·(1 − exp(−2·rate·t))/(2·rate)``.
    """

    states = ("value",)
    parameter_names = ("rate", "mean", "start")

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        rate, mean, _ = theta.unbind(-1)
        return (rate * (mean - y[..., 0]))[..., None]

    def initial_state(self, theta: Tensor) -> Tensor:
        return theta[..., 2:]

    def size(self, scaling: Scaling) -> tuple[float, ...]:
        return scaling.value

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return {"rate": 10.0 / scaling.time, "mean": scaling.value[0], "start": scaling.value[0]}


class StochasticLotkaVolterra(StochasticDynamics):
    """Predator and prey in a fluctuating environment: each growth rate has a white noise of its own::

        dx = x·(alpha − beta·y) dt + sigma_prey·x dW1        dy = y·(delta·x − gamma) dt + sigma_predator·y dW2

    Solved for the logarithms, which cannot turn negative and whose noise is additive: by Itô's formula
    d log x = (alpha − beta·y − sigma_prey²/2) dt + sigma_prey dW1, and so for y. Parameters and endpoints as of
    `LotkaVolterra`.
    """

    states = ("log_prey", "log_predator")
    endpoints = (0, 1)
    noisy = (0, 1)

    def __init__(self, sigma: float) -> None:
        super().__init__(sigma)
        self.mechanism = LotkaVolterra()
        self.parameter_names = self.mechanism.parameter_names

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        density = y.exp()
        growth: Tensor = self.mechanism(t, density, theta) / density
        return growth - 0.5 * (2 * self.log_sigma).exp()

    def initial_state(self, theta: Tensor) -> Tensor:
        return self.mechanism.initial_state(theta).log()

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return y.exp()

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return self.mechanism.guess(scaling)


class FluctuatingClearance(StochasticDynamics):
    """Compartments with a clearance that wanders within each patient::

        dA/dt = K(CL·exp(x))·A + doses        dx = −reversion·x dt + sigma dW,    x(0) = 0

    x, the state ``log_clearance``, is an Ornstein–Uhlenbeck process: the clearance is CL at the first record and comes
    back to it. Endpoints and parameters as of `CompartmentModel`; reversion (1/time) and sigma are the same for all.

    Args:
        mechanism: compartments with a linear elimination, without lag or bioavailability.
        sigma: first guess of the size of the noise, per square root of time.
        reversion: first guess of the rate at which the clearance comes back, 1/time.

    Raises:
        ValueError: a mechanism without a CL of its own, or with lag or bioavailability.
    """

    def __init__(self, mechanism: CompartmentModel, sigma: float, reversion: float) -> None:
        self.noisy = (len(mechanism.states),)
        super().__init__(sigma)
        if mechanism.elimination != "linear" or {"LAG", "F"} & set(mechanism.parameter_names):
            raise ValueError("a fluctuating clearance needs linear elimination, without lag or bioavailability")
        self.mechanism = mechanism
        self.states = (*mechanism.states, "log_clearance")
        self.endpoints = mechanism.endpoints
        self.parameter_names = mechanism.parameter_names
        self.log_reversion = nn.Parameter(torch.tensor(float(reversion)).log())

    @property
    def noise(self) -> dict[str, Tensor]:
        return super().noise | {"reversion": self.log_reversion.exp()}

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        amounts, x = y[..., :-1], y[..., -1:]
        now = torch.cat([theta[..., :1] * x.exp(), theta[..., 1:]], dim=-1)  # CL comes first
        return torch.cat([self.mechanism(t, amounts, now), -self.log_reversion.exp() * x], dim=-1)

    def foresee(self, y: Tensor, drift: Tensor, span: Tensor) -> Tensor:
        # amounts stay positive: what falls falls like an exponential
        amounts = y[..., :-1].clamp(min=1e-6)
        later = amounts * torch.exp((drift[..., :-1] / amounts * span).clamp(-3.0, 3.0))
        return torch.cat([later, y[..., -1:]], dim=-1)

    def observe(self, y: Tensor, theta: Tensor) -> Tensor:
        return torch.cat([self.mechanism.observe(y[..., :-1], theta), y[..., -1:]], dim=-1)

    def size(self, scaling: Scaling) -> tuple[float, ...]:
        return (*[scaling.amount] * len(self.mechanism.states), 1.0)

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return self.mechanism.derived(theta) | super().derived(theta)

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return self.mechanism.guess(scaling)

"""Stochastic dynamics: dY = f(t, Y, theta) dt + g(t, theta) dW."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from neuralpk.dynamics.compartments import CompartmentModel
from neuralpk.dynamics.dynamics_base import Dynamics
from neuralpk.dynamics.lotka_volterra import LotkaVolterra
from neuralpk.dynamics.wrapper import Wrapper
from neuralpk.scaling import Scaling


class StochasticDynamics(Dynamics):
    """A system of stochastic differential equations::

        dY = f(t, Y, theta) dt + g(t, theta) dW

    `forward` is the drift f. Each noisy state has an independent Brownian motion, the other states have none. A system
    is written in coordinates in which its noise is additive, for example the logarithm where noise is multiplicative
    (Lamperti's transform): then Itô's and Stratonovich's integral agree, and there are methods of higher order.

    Args:
        sigma: starting value of the standard deviation of the noise, per square root of time, for every noisy state.

    Attributes:
        noisy: indices of the states with noise.

    Raises:
        ValueError: a sigma that is not positive.
    """

    noisy: tuple[int, ...] = (0,)
    stochastic = True

    def __init__(self, sigma: float) -> None:
        super().__init__()
        if not 0 < sigma < math.inf:
            raise ValueError(f"sigma, the standard deviation of the noise, must be positive, not {sigma}")
        self.log_sigma = nn.Parameter(torch.full((len(self.noisy),), float(sigma)).log())

    @property
    def noise(self) -> dict[str, Tensor]:
        """Parameters of the noise by name, each a scalar; the same for all subjects."""
        names = [f"sigma_{self.states[k]}" for k in self.noisy]
        return dict(zip(names, self.log_sigma.exp().unbind(), strict=True))

    def diffusion(self, t: Tensor, theta: Tensor) -> Tensor:
        """g at the noisy states, ``[subject, noise]``, by default sigma; arguments as for the drift."""
        return self.log_sigma.exp().expand(len(theta), -1)

    def foresee(self, y: Tensor, drift: Tensor, span: Tensor) -> Tensor:
        """Approximate state after a time `span` of the drift alone, ``[subject, state]``.

        Args:
            y: state, ``[subject, state]``.
            drift: f(y), ``[subject, state]``.
            span: time, ``[subject, 1]``.
        """
        return y + drift * span

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return {name: value.expand(theta.shape[:-1]) for name, value in self.noise.items()}


class OrnsteinUhlenbeck(StochasticDynamics):
    """The Ornstein–Uhlenbeck process, which returns to its mean (Uhlenbeck and Ornstein 1930)::

        dx = rate·(mean − x) dt + sigma dW

    Parameters: rate (1/time), mean, and start, the value at the first record. Given x(0) the value at t is normal with
    mean ``mean + (x(0) − mean)·exp(−rate·t)`` and variance ``sigma²·(1 − exp(−2·rate·t))/(2·rate)``.

    Args:
        sigma: starting value of the standard deviation of the noise, per square root of time.
    """

    states = ("value",)
    parameter_names = ("rate", "mean", "start")

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        rate, mean, _ = theta.unbind(-1)
        return (rate * (mean - y[..., 0]))[..., None]

    def initial_state(self, theta: Tensor) -> Tensor:
        return theta[..., 2:]

    def guess(self, scaling: Scaling) -> dict[str, float]:
        return {"rate": 10.0 / scaling.time, "mean": scaling.value[0], "start": scaling.value[0]}


class StochasticLotkaVolterra(Wrapper, StochasticDynamics):
    """Predator and prey with independent white noise of each growth rate::

        dx = x·(alpha − beta·y) dt + sigma_prey·x dW1        dy = y·(delta·x − gamma) dt + sigma_predator·y dW2

    Its states are the logarithms, which cannot make a density negative and have additive noise: by Itô's formula
    d log x = (alpha − beta·y − sigma_prey²/2) dt + sigma_prey dW1, and likewise for y. Parameters and endpoints are
    those of `LotkaVolterra`.

    Args:
        sigma: starting value of the standard deviation of both noises, per square root of time.
    """

    noisy = (0, 1)

    def __init__(self, sigma: float) -> None:
        StochasticDynamics.__init__(self, sigma)
        self.wrap(LotkaVolterra())
        self.states = tuple(f"log_{state}" for state in self.inner.states)

    def inner_theta(self, theta: Tensor) -> Tensor:
        return theta

    def inner_state(self, y: Tensor) -> Tensor:
        return y.exp()

    def state_size(self, scaling: Scaling) -> tuple[float, ...]:
        return (1.0,) * len(self.states)

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        density = y.exp()
        growth: Tensor = self.inner(t, density, theta) / density
        return growth - 0.5 * (2 * self.log_sigma).exp()

    def initial_state(self, theta: Tensor) -> Tensor:
        return super().initial_state(theta).log()

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return super().derived(theta) | StochasticDynamics.derived(self, theta)


class FluctuatingClearance(Wrapper, StochasticDynamics):
    """Compartments with a clearance that fluctuates in time within each patient::

        dA/dt = K(CL·exp(x))·A + doses        dx = −reversion·x dt + sigma dW,    x(0) = 0

    x, the state ``log_clearance``, is an Ornstein–Uhlenbeck process: the clearance is CL at the first record and
    returns to it. Endpoints and parameters are those of the compartments; reversion (1/time) and sigma are the same for
    all subjects.

    Args:
        compartments: a compartment model with linear elimination, without lag or bioavailability.
        sigma: starting value of the standard deviation of the noise, per square root of time.
        reversion: starting value of the rate at which the clearance returns to CL, 1/time; None for 4 per span of the
            data.

    Raises:
        ValueError: compartments without a linear clearance, or with lag or bioavailability; a number that is not
            positive.
    """

    clearance: Tensor

    def __init__(self, compartments: CompartmentModel, sigma: float, reversion: float | None = None) -> None:
        self.noisy = (len(compartments.states),)
        StochasticDynamics.__init__(self, sigma)
        if compartments.elimination != "linear" or {"LAG", "F"} & set(compartments.parameter_names):
            raise ValueError("a fluctuating clearance needs linear elimination, without lag or bioavailability")
        if reversion is not None and not 0 < reversion < math.inf:
            raise ValueError(f"reversion must be positive, not {reversion}")
        self.wrap(compartments)
        self.states = (*compartments.states, "log_clearance")
        self.reversion = reversion
        self.log_reversion = nn.Parameter(torch.tensor(4.0 if reversion is None else float(reversion)).log())
        is_clearance = [name == "CL" for name in self.parameter_names]
        self.register_buffer("clearance", torch.tensor(is_clearance), persistent=False)

    @property
    def noise(self) -> dict[str, Tensor]:
        return super().noise | {"reversion": self.log_reversion.exp()}

    def build(self, scaling: Scaling) -> None:
        super().build(scaling)
        if self.reversion is None:
            with torch.no_grad():
                self.log_reversion.fill_(4.0 / scaling.time).log_()

    def inner_theta(self, theta: Tensor) -> Tensor:
        return theta

    def forward(self, t: Tensor, y: Tensor, theta: Tensor) -> Tensor:
        x = y[..., -1:]
        now = torch.where(self.clearance, theta * x.exp(), theta)
        return torch.cat([self.inner(t, y[..., :-1], now), -self.log_reversion.exp() * x], dim=-1)

    def foresee(self, y: Tensor, drift: Tensor, span: Tensor) -> Tensor:
        # exponential decline and growth, so that amounts stay positive
        amounts = y[..., :-1].clamp(min=1e-6)
        later = amounts * torch.exp((drift[..., :-1] / amounts * span).clamp(-3.0, 3.0))
        return torch.cat([later, y[..., -1:]], dim=-1)

    def derived(self, theta: Tensor) -> dict[str, Tensor]:
        return super().derived(theta) | StochasticDynamics.derived(self, theta)

"""A model of the same parts as the real one that trains nothing: the command line is tested without waiting for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import pandas as pd
import torch
from torch import Tensor, nn

from neuralpk.checkpoint_files import read_checkpoint
from neuralpk.part import Part, describe, make
from neuralpk.training_data_provenance import Provenance


class Decoder(Part, nn.Module, ABC):
    """States that start somewhere, move, are observed."""

    @abstractmethod
    def follow(self) -> None:
        """Nothing here."""


class CompartmentModel(Decoder):
    """A compartment model.

    Args:
        compartments: 1, 2 or 3.
        absorption: how a dose reaches the first compartment.
        transits: transit compartments of ``transit``.
    """

    def __init__(
        self, compartments: int = 2, absorption: Literal["none", "first_order", "transit"] = "none", transits: int = 3
    ) -> None:
        super().__init__()
        if not 1 <= compartments <= 3:
            raise ValueError(f"compartments must be 1, 2 or 3, got {compartments}")
        self.compartments, self.absorption, self.transits = compartments, absorption, transits

    def follow(self) -> None:
        """Nothing here."""


class NeuralCompartments(Decoder):
    """Compartments with a network.

    Args:
        hidden: units of the hidden layers.
        activation: of the hidden layers.
    """

    def __init__(self, hidden: list[int] | int = 32, activation: str = "tanh") -> None:
        super().__init__()
        self.hidden, self.activation = hidden, activation

    def follow(self) -> None:
        """Nothing here."""


class HybridDynamics(Decoder):
    """A mechanism and a network beside it.

    Args:
        mechanism: what is known.
        hidden: units of the network.
    """

    def __init__(self, mechanism: Decoder, hidden: int = 16) -> None:
        super().__init__()
        self.mechanism, self.hidden = mechanism, hidden

    def follow(self) -> None:
        """Nothing here."""


class Distribution(Part, ABC):
    """Distribution of one parameter."""

    @abstractmethod
    def draw(self) -> None:
        """Nothing here."""


class LogNormal(Distribution):
    """exp of a normal one.

    Args:
        omega: standard deviation of eta.
    """

    def __init__(self, omega: float = 0.3) -> None:
        self.omega = omega

    def draw(self) -> None:
        """Nothing here."""


class Fixed(Distribution):
    """No variability."""

    def draw(self) -> None:
        """Nothing here."""


class PopulationParameters(Part, nn.Module):
    """Distribution of theta.

    Args:
        typical: typical values by parameter.
        omega: standard deviation of eta, of all or by parameter.
        distributions: distributions of single parameters.
        covariates: which covariates act on a parameter.
    """

    def __init__(
        self,
        typical: dict[str, float] | None = None,
        omega: float | dict[str, float] = 0.3,
        distributions: dict[str, Distribution] | None = None,
        covariates: dict[str, list[str]] | None = None,
    ) -> None:
        super().__init__()
        self.typical, self.omega, self.distributions, self.covariates = typical, omega, distributions, covariates


class ResidualError(Part, nn.Module, ABC):
    """Distribution of an observed value."""

    @abstractmethod
    def distribution(self) -> None:
        """Nothing here."""


class ProportionalError(ResidualError):
    """Standard deviation b times the prediction.

    Args:
        b: starting value.
    """

    def __init__(self, b: float = 0.2) -> None:
        super().__init__()
        self.b = b

    def distribution(self) -> None:
        """Nothing here."""


class Engine(Part, ABC):
    """Solves."""

    @abstractmethod
    def solve(self) -> None:
        """Nothing here."""


@dataclass(frozen=True)
class RungeKutta(Engine):
    """Adaptive steps.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance, of the size of a state.
    """

    rtol: float = 1e-5
    atol: float = 1e-6

    def solve(self) -> None:
        """Nothing here."""


@dataclass(frozen=True)
class TorchDiffEq(Engine):
    """The library torchdiffeq.

    Args:
        method: of torchdiffeq.
        gradient: how gradients are found.
        rtol: relative tolerance.
    """

    method: str = "dopri5"
    gradient: Literal["backprop", "adjoint"] = "backprop"
    rtol: float = 1e-5

    def solve(self) -> None:
        """Nothing here."""


class Encoder(Part, nn.Module, ABC):
    """Samples to q(z)."""

    @abstractmethod
    def forward(self) -> None:
        """Nothing here."""


class SetEncoder(Encoder):
    """A set of samples.

    Args:
        hidden: units of each layer.
    """

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self) -> None:
        """Nothing here."""


class RecurrentEncoder(Encoder):
    """A sequence of samples.

    Args:
        hidden: units of the state.
    """

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self) -> None:
        """Nothing here."""


class Objective(Part, ABC):
    """What is minimised."""

    @abstractmethod
    def loss(self) -> None:
        """Nothing here."""


class MarginalLikelihood(Objective):
    """Importance sampling.

    Args:
        draws: of z for each subject.
        map_steps: most steps to the MAP estimate.
    """

    def __init__(self, draws: int = 20, map_steps: int = 10) -> None:
        self.draws, self.map_steps = draws, map_steps

    def loss(self) -> None:
        """Nothing here."""


class SquaredError(Objective):
    """Mean squared error."""

    def loss(self) -> None:
        """Nothing here."""


class LatentTask(L.LightningModule):
    """Train a latent ODE.

    Args:
        dynamics: what moves between the doses.
        parameters: distribution of theta.
        error: residual error.
        engine: what solves the dynamics.
        encoder: samples to q(z).
        objective: what is minimised.
        learning_rate: largest learning rate of Adam.
        horizon: share of the training over which the horizon grows.
        seed: of the draws of z.
        pretrained: checkpoint to start from.
    """

    provenance = Provenance()

    def build_for(self, data: Any) -> None:
        """As of the real one; nothing depends on the data here."""

    @classmethod
    def load_from_checkpoint(cls, path: Any, map_location: Any = None, unverified: bool = False) -> LatentTask:
        """As of the real one: verified first."""
        read_checkpoint(path, unverified=unverified, keys=("state_dict",))
        return super().load_from_checkpoint(path, map_location, weights_only=True)

    def __init__(
        self,
        dynamics: Decoder,
        parameters: PopulationParameters | None = None,
        error: ResidualError | None = None,
        engine: Engine | None = None,
        encoder: Encoder | None = None,
        objective: Objective | None = None,
        learning_rate: float = 0.01,
        horizon: float = 0.0,
        seed: int = 0,
        pretrained: str | None = None,
    ) -> None:
        super().__init__()
        slots: dict[str, tuple[Any, type[Part]]] = {
            "dynamics": (dynamics, Decoder),
            "parameters": (parameters or PopulationParameters(), PopulationParameters),
            "error": (error or ProportionalError(), ResidualError),
            "engine": (engine or RungeKutta(), Engine),
            "encoder": (encoder or SetEncoder(), Encoder),
            "objective": (objective or MarginalLikelihood(), Objective),
        }
        self.parts = {name: make(value, base, name) for name, (value, base) in slots.items()}
        plain = {name: describe(part) for name, part in self.parts.items()}
        self.save_hyperparameters(plain | {"learning_rate": learning_rate, "horizon": horizon, "seed": seed})
        self.learning_rate, self.horizon, self.pretrained = learning_rate, horizon, pretrained
        self.weight = nn.Parameter(torch.zeros(1))

    def _loss(self, stage: str) -> Tensor:
        loss = (self.weight - 1.0).square().sum()
        self.log(f"{stage}_loss", loss, batch_size=1)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step."""
        return self._loss("train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Logs val_loss."""
        self._loss("val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Logs test_loss."""
        self._loss("test")

    def predict_step(self, batch: Any, batch_idx: int) -> pd.DataFrame:
        """The weight."""
        return pd.DataFrame({"WEIGHT": [float(self.weight)]})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

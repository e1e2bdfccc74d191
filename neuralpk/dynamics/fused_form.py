"""Tensors of a vector field whose learned part is a perceptron, as the fused kernels take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Activation = Literal["tanh", "silu", "softplus"]


@dataclass(frozen=True)
class Perceptron:
    """The vector field dy/dt = matrix·y + head(x) with the network ::

        x = W_L·a(… a(W_2·a(W_1·g + shift) + b_2) …) + b_L,     g = y, or log(1 + max(y, 0)/scale)

    Inputs that differ between subjects and are constant during a solve (latent dimensions, covariates) are in `shift`,
    so that they are multiplied by weights once per solve and not once per evaluation. The head is x itself, or flows
    between compartments with the rate constants base_f·exp(5·tanh(x_f/5)).

    A field that depends on time has it as the last component of y: `clock` times the time since the first record.

    Args:
        shift: bias of the first layer, ``[subject, hidden]`` (or ``[subject, period, hidden]``, and so the other two).
        weights: weights of each layer, ``[hidden, state]``, ``[hidden, hidden]``, …, ``[output, hidden]``.
        biases: biases of every layer but the first.
        activation: activation function between the layers.
        scale: unit of y inside the logarithm, a positive number; None for g = y.
        matrix: ``[subject, state, state]``; None for none.
        base: base rate constant of every flow, ``[subject, flow]``; None for the head x.
        flows: source and destination of every flow, -1 for out of the system.
        clock: slope in time of the last component of y, a number; None for a field that does not depend on time.
    """

    shift: Tensor
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    activation: Activation
    scale: Tensor | None = None
    matrix: Tensor | None = None
    base: Tensor | None = None
    flows: tuple[tuple[int, int], ...] = ()
    clock: Tensor | None = None

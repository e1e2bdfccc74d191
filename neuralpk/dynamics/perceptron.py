"""A vector field whose learned part is a perceptron, laid open as plain tensors for the kernels that fuse it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Activation = Literal["tanh", "silu", "softplus"]


@dataclass(frozen=True)
class Perceptron:
    """dy/dt = matrix·y + head(x), of which the network is ::

        x = W_L·a(… a(W_2·a(W_1·g + shift) + b_2) …) + b_L,     g = y, or log(1 + max(y, 0)/scale)

    What differs between subjects and stays the same through a solve (latent, covariates) is in `shift`, so that it
    enters the first layer once a solve and not once an evaluation. The head is x itself, or flows between compartments
    of rate base_f·exp(5·tanh(x_f/5)).

    A field that also reads the time has it as a last component of y, `clock` times the time since the first record.

    Args:
        shift: of the first layer, ``[subject, hidden]`` (or ``[subject, period, hidden]``, and so the other two).
        weights: of each layer, ``[hidden, state]``, ``[hidden, hidden]``, …, ``[output, hidden]``.
        biases: of every layer but the first.
        activation: between the layers.
        scale: of the logarithm, a positive number; None for g = y.
        matrix: ``[subject, state, state]``; None for none.
        base: base rate of every flow, ``[subject, flow]``; None for the head x.
        flows: source and destination of every flow, -1 for out of the system.
        clock: how fast the component that is the time grows, a number; None where the field reads no time.
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

"""Start and observation of hidden states, common to all recurrent networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from neuralpk.dynamics import Decoder
from neuralpk.scaling import Scaling


class HiddenStates(nn.Module):
    """First value and observation of hidden states h; observed values are positive by construction::

        h0 = tanh(start(z))        value = size · exp(8·tanh(readout(h)/8))

    Args:
        like: the decoder into whose compartments doses go; the first hidden states have their names.
        latent_size: dimension of z.
        hidden: number of hidden states.

    Raises:
        ValueError: fewer hidden states than compartments.
    """

    size: Tensor
    amount: Tensor
    time: Tensor

    def __init__(self, like: Decoder, latent_size: int, hidden: int) -> None:
        super().__init__()
        named = like.states
        if hidden < len(named):
            raise ValueError(f"hidden must be at least {len(named)}, the number of compartments {', '.join(named)}")
        self.states = (*named, *(f"h{k}" for k in range(len(named) + 1, hidden + 1)))
        self.start, self.readout = nn.Linear(latent_size, hidden), nn.Linear(hidden, hidden)
        self.register_buffer("size", torch.ones(hidden))
        self.register_buffer("amount", torch.tensor(1.0))
        self.register_buffer("time", torch.tensor(1.0))

    def build(self, scaling: Scaling, endpoints: tuple[int, ...]) -> None:
        """Set the magnitudes of the data."""
        values = dict(zip(endpoints, scaling.value, strict=False))
        size = [values.get(k, scaling.value[0]) for k in range(len(self.states))]
        self.size.copy_(torch.tensor(size, dtype=torch.float64))
        self.amount.fill_(scaling.amount)
        self.time.fill_(scaling.time)

    def first(self, z: Tensor) -> Tensor:
        """h0 ``[..., state]`` for z ``[..., latent]``."""
        return torch.tanh(self.start(z))

    def observe(self, h: Tensor) -> Tensor:
        """Values ``[..., state]`` for h ``[..., state]``."""
        value: Tensor = self.size * torch.exp(8.0 * torch.tanh(self.readout(h) / 8.0))
        return value

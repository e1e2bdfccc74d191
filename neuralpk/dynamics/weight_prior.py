"""What is believed of the weights of a network before there are data."""

import torch
from torch import Tensor, nn

# Standard deviation of the hidden weights, times √inputs. With more, features that fit by chance are found, and weights
# of which the data say nothing make a linear approximation of the posterior too wide.
HIDDEN = 0.1


class WeightPrior(nn.Module):
    """Independent normal densities of a network's weights, around those that it has when the prior is made.

    The first layers of a new network are random: they are features of what it reads, and a training moves them a little
    (standard deviation `HIDDEN`/√inputs). Around zero, instead, the most probable network would be none: layers that
    multiply each other vanish together. The last layer, which starts at zero, weighs the features; its standard
    deviation is such that the outputs are about `spread` in size (Neal 1996, Bayesian Learning for Neural Networks).
    After a training elsewhere, `centre` makes the weights that were found the middle of the same density.

    Args:
        network: linear layers, with an activation in between.
        spread: standard deviation of its outputs at `typical`, in their own unit.
        typical: an input of ordinary size, ``[input]``.
        empty: an input ``[input]`` at which outputs are taken to be 0, for a network without a last bias; by default
            they are not, and the bias weighs one more feature, which is 1.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, network: nn.Sequential, spread: float, typical: Tensor, empty: Tensor | None = None) -> None:
        super().__init__()
        self.spread = spread
        self.register_buffer("typical", typical)
        self.register_buffer("empty", empty)
        self.register_buffer("mean", torch.zeros_like(_weights(network)))
        self.register_buffer("sd", torch.zeros_like(self.mean))
        self.centre(network)

    @torch.no_grad()
    def centre(self, network: nn.Sequential) -> None:
        """From now on expect the weights that the network has now."""
        *hidden, last = (layer for layer in network if isinstance(layer, nn.Linear))
        sizes = [torch.full_like(w, HIDDEN * layer.in_features**-0.5) for layer in hidden for w in layer.parameters()]
        sizes += [torch.full_like(w, self.spread / self._features(network)) for w in last.parameters()]
        self.mean.copy_(_weights(network))
        self.sd.copy_(nn.utils.parameters_to_vector(sizes))

    def _features(self, network: nn.Sequential) -> float:
        """Euclidean size of what the last layer weighs."""
        features = network[:-1]
        if self.empty is not None:
            return float((features(self.typical) - features(self.empty)).norm())
        return float((features(self.typical).square().sum() + 1.0).sqrt())

    def forward(self, network: nn.Sequential) -> Tensor:
        """log p(weights), up to a constant."""
        return -0.5 * ((nn.utils.parameters_to_vector(network.parameters()) - self.mean) / self.sd).square().sum()


def _weights(network: nn.Sequential) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()

"""Prior distribution of the weights of a network."""

import torch
from torch import Tensor, nn

# Standard deviation of the hidden weights, times √inputs. A larger one finds features that fit by chance, and weights
# that the data do not determine make a linear approximation of the posterior too wide.
HIDDEN = 0.1


class WeightPrior(nn.Module):
    """Independent normal densities of the weights of a network, centred at their values when the prior is made.

    The first layers of a new network are random: they compute features of its inputs, and a training changes them
    little (standard deviation `HIDDEN`/√inputs). With the centre 0 the most probable network would have no weights at
    all, since layers that multiply each other shrink together. The last layer, which starts at 0, combines the
    features; its standard deviation is such that the outputs have the standard deviation `prior_sd` (Neal 1996,
    Bayesian Learning for Neural Networks). After another training, `centre` moves the centre to the weights found.

    Args:
        network: linear layers with activations between them.
        prior_sd: standard deviation of its outputs at `typical`, in the unit of the outputs.
        typical: an input of typical size, ``[input]``.
        empty: the input ``[input]`` at which the outputs count as 0, for a network without a last bias; by default
            there is a last bias, which counts as the weight of one more feature, 1.

    Raises:
        ValueError: a `prior_sd` that is not positive.
    """

    mean: Tensor
    sd: Tensor
    typical: Tensor
    empty: Tensor | None

    def __init__(self, network: nn.Sequential, prior_sd: float, typical: Tensor, empty: Tensor | None = None) -> None:
        super().__init__()
        if not prior_sd > 0:
            raise ValueError(f"prior_sd must be positive, not {prior_sd}")
        self.prior_sd = prior_sd
        self.register_buffer("typical", typical)
        self.register_buffer("empty", empty)
        self.register_buffer("mean", torch.zeros_like(_weights(network)))
        self.register_buffer("sd", torch.zeros_like(self.mean))
        self.centre(network)

    @torch.no_grad()
    def centre(self, network: nn.Sequential) -> None:
        """Move the centre to the present weights of the network."""
        *hidden, last = (layer for layer in network if isinstance(layer, nn.Linear))
        sizes = [torch.full_like(w, HIDDEN * layer.in_features**-0.5) for layer in hidden for w in layer.parameters()]
        sizes += [torch.full_like(w, self.prior_sd / self._features(network)) for w in last.parameters()]
        self.mean.copy_(_weights(network))
        self.sd.copy_(nn.utils.parameters_to_vector(sizes))

    def move(self, step: Tensor, network: nn.Sequential) -> None:
        """Move the typical and the empty input by a step ``[input]``, for a network that reads its inputs from another
        origin."""
        self.typical.add_(step)
        if self.empty is not None:
            self.empty.add_(step)
        self.centre(network)

    def _features(self, network: nn.Sequential) -> float:
        """Euclidean norm of the features that the last layer combines."""
        features = network[:-1]
        if self.empty is not None:
            return float((features(self.typical) - features(self.empty)).norm())
        return float((features(self.typical).square().sum() + 1.0).sqrt())

    def forward(self, network: nn.Sequential) -> Tensor:
        """Log density of the weights of the network, up to a constant."""
        return -0.5 * ((nn.utils.parameters_to_vector(network.parameters()) - self.mean) / self.sd).square().sum()


def _weights(network: nn.Sequential) -> Tensor:
    return nn.utils.parameters_to_vector(network.parameters()).detach()

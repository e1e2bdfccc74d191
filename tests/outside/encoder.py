"""An encoder of one's own."""

import torch
from torch import nn

from neuralpk.encoders import Encoder, Posterior, feature_size, sample_features


class AverageEncoder(Encoder):
    """q(z) from the average of the features of a patient's samples.

    Args:
        hidden: width of the network.
    """

    def __init__(self, hidden: int = 16) -> None:
        super().__init__()
        self.hidden = hidden

    def build(self, scaling, latent_size):
        super().build(scaling, latent_size)
        self.network = nn.Sequential(
            nn.Linear(feature_size(scaling), self.hidden), nn.SiLU(), nn.Linear(self.hidden, 2 * latent_size)
        )

    def forward(self, batch):
        seen = batch.context[..., None]
        features = torch.where(seen, sample_features(batch, self.scaling), 0.0)
        mean, log_sd = self.network(features.sum(1) / seen.sum(1).clamp(min=1)).chunk(2, dim=-1)
        return Posterior(mean, log_sd.clamp(-5.0, 1.0).exp())

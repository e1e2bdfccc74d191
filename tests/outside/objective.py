"""An objective of one's own."""

import torch
from torch.nn.functional import huber_loss

from neuralpk.objectives import Loss, Objective


class HuberError(Objective):
    """Huber's loss of the logarithms at the mean of q(z).

    Args:
        delta: from which error on the loss is linear.
    """

    has_likelihood = False

    def __init__(self, delta: float = 0.5) -> None:
        self.delta = delta

    def loss(self, model, encoder, guide, batch, step):
        prediction = model.predict(encoder(batch).mean, batch).value
        scored = batch.target & (batch.value > 0) & (prediction > 0)
        error = huber_loss(prediction[scored].log(), batch.value[scored].log(), reduction="sum", delta=self.delta)
        return Loss(error, scored.sum(), torch.tensor(0))

"""A covariate effect of one's own."""

import torch
from torch import nn

from neuralpk.parameters import CovariateEffect


class Maturation(CovariateEffect):
    """Growth of a clearance with age: log(AGE/(AGE50 + AGE)) − the same at the reference age.

    Args:
        covariate: name of the age.
        half: starting value of AGE50, the age of half of the mature clearance.
    """

    def __init__(self, covariate: str = "AGE", half: float = 1.0) -> None:
        super().__init__([covariate])
        self.log_half = nn.Parameter(torch.tensor(float(half)).log())

    def forward(self, covariates):
        age, half = covariates[..., 0], self.log_half.exp()
        return torch.log(age / (half + age))

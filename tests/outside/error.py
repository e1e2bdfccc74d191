"""A residual error of one's own: only its distribution."""

from torch.distributions import StudentT

from neuralpk.residual_error import ResidualError


class RobustError(ResidualError):
    """y = f + b·f·e, with e of Student's t distribution: it forgives outliers.

    Args:
        freedom: degrees of freedom.
    """

    names = ("b",)

    def __init__(self, freedom: float = 4.0) -> None:
        super().__init__()
        self.freedom = freedom

    def distribution(self, prediction, endpoint):
        scale = self.by_endpoint("b", endpoint) * prediction.abs().clamp(min=1e-6)
        return StudentT(self.freedom, prediction, scale, validate_args=False)

"""A vector field of one's own."""

from neuralpk.dynamics import Dynamics


class ParallelElimination(Dynamics):
    """One compartment with a linear and a saturable elimination: dA/dt = −CL·C − VMAX·C/(KM + C), C = A/V1.

    Args:
        slowest: KM is at least this share of the observed values.
    """

    states = ("central",)
    parameter_names = ("CL", "VMAX", "KM", "V1")

    def __init__(self, slowest: float = 0.1) -> None:
        super().__init__()
        self.slowest = slowest

    def forward(self, t, y, theta):
        p = self.named(theta)
        c = (y[..., 0] / p["V1"]).clamp(min=0.0)
        return -(p["CL"] * c + p["VMAX"] * c / (p["KM"] + c))[..., None]

    def observe(self, y, theta):
        return y / self.named(theta)["V1"][..., None]

    def guess(self, scaling):
        v = scaling.amount / scaling.value[0]
        return {"CL": v / scaling.time, "VMAX": scaling.amount / scaling.time, "KM": scaling.value[0], "V1": v}

"""A decoder of one's own that is no ODE: a closed formula."""

import torch

from neuralpk.dynamics import Decoder
from neuralpk.solve import Trajectory


class OralDose(Decoder):
    """The sum over doses of Bateman's function: C = F·D·KA/(V1·(KA − k))·(exp(−k·t) − exp(−KA·t)), k = CL/V1."""

    states = ("central",)
    parameter_names = ("CL", "V1", "KA")

    def follow(self, theta, batch, times, engine):
        times = batch.time if times is None else times
        theta = batch.theta_at(theta, times)  # [subject, time, parameter]
        p = {name: value[:, :, None] for name, value in self.named(theta).items()}
        doses = batch.doses
        since = times[:, :, None] - doses.time[:, None]  # [subject, time, dose]
        k = p["CL"] / p["V1"]
        curve = doses.amount[:, None] * p["KA"] / (p["KA"] - k) * (torch.exp(-k * since) - torch.exp(-p["KA"] * since))
        amount = torch.where((since >= 0) & doses.mask[:, None], curve, 0.0).sum(-1)
        return Trajectory.of(times, amount[..., None], theta)

    def observe(self, y, theta):
        return y / self.named(theta)["V1"][..., None]

    def guess(self, scaling):
        v = scaling.amount / scaling.value[0]
        return {"CL": 4 * v / scaling.time, "V1": v, "KA": 20 / scaling.time}

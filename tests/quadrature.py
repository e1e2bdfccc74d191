"""A small population whose likelihood is known: boluses into one compartment, integrated over z on a grid.

Nothing here is of the package but the model itself: the concentration has its closed form, the integral is a sum.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from neuralpk.cohort import Cohort, Dose, Subject
from neuralpk.dynamics import CompartmentModel
from neuralpk.parameters import PopulationParameters
from neuralpk.population_model import PopulationModel
from neuralpk.residual_error import AdditiveError
from neuralpk.scaling import Scaling

DOSE, TIMES = 100.0, np.array([0.5, 2.0, 5.0, 9.0])
CL, V1, OMEGA, SD = 5.0, 20.0, 0.35, 0.4


def cohort(subjects: int = 6, lloq: float = 0.0, fewest: int = 1, seed: int = 5) -> Cohort:
    """Patients of the population, each with one sample more than the one before, from the fewest to all and again."""
    generator = np.random.default_rng(seed)
    people = []
    for k in range(subjects):
        times = TIMES[: fewest + k % (len(TIMES) - fewest + 1)]
        clearance, volume = np.array([CL, V1]) * np.exp(OMEGA * generator.normal(size=2))
        values = DOSE / volume * np.exp(-clearance / volume * times) + SD * generator.normal(size=len(times))
        below = values < lloq
        seen = np.where(below, lloq, values)
        people.append(Subject(str(k), times, seen, (Dose(0.0, DOSE),), censored=below.astype(int)))
    return Cohort(tuple(people))


def model(people: Cohort, **options: object) -> PopulationModel:
    """The population that they come from, as a model in float64; `options` are of its parameters."""
    parameters = PopulationParameters({"CL": CL, "V1": V1}, **({"omega": OMEGA} | options))
    made = PopulationModel(CompartmentModel(1), parameters, AdditiveError(SD))
    return made.build(Scaling.of(people), torch.float64)


def coordinates(made: PopulationModel) -> Tensor:
    """log CL, log V1, log omega of both, log a."""
    return torch.tensor([one.value for one in made.coordinates()], dtype=torch.float64, requires_grad=True)


def log_likelihood(at: Tensor, people: Cohort) -> Tensor:
    """log p(y) of every subject, differentiable in the coordinates.

    The trapezoidal rule: of a smooth function that is nothing at both ends it converges faster than any power of the
    step, and no z here is known better than to two steps.
    """
    z = torch.linspace(-6.5, 6.5, 201, dtype=torch.float64)
    step = float(z[1] - z[0])
    clearance = torch.exp(at[0] + at[2].exp() * z)[:, None, None]
    volume = torch.exp(at[1] + at[3].exp() * z)[:, None]
    sd = at[4].exp()
    prior = -0.5 * (z[:, None].square() + z.square()) - math.log(2 * math.pi)
    found = []
    for subject in people:
        line = DOSE / volume * torch.exp(-clearance / volume * torch.tensor(subject.times))
        away = (torch.tensor(subject.values) - line) / sd
        seen = -0.5 * away.square() - at[4] - 0.5 * math.log(2 * math.pi)
        log_p = torch.where(torch.tensor(subject.censored) == 1, torch.special.log_ndtr(away), seen).sum(-1)
        found.append(torch.logsumexp((log_p + prior).flatten(), dim=0) + 2 * math.log(step))
    return torch.stack(found)

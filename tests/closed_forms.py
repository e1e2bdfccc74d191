"""Answers that owe nothing to the package: textbook closed forms and digits from another solver.

A mammillary model with linear elimination answers a bolus with a sum of exponentials, C(t) = D·Σ a_i·exp(−λ_i·t)
(Gibaldi and Perrier 1982, ch. 2). Every other input is its convolution with that sum, and repetition without end is
a geometric series.
"""

from dataclasses import dataclass

import numpy as np

PARAMETERS = {"CL": 5.0, "V1": 20.0, "Q": 3.0, "V2": 40.0, "Q3": 1.0, "V3": 60.0}
KA, LAG, F = 1.3, 0.7, 0.6

# u(10) and the gradients of ||1 − u(10)||²/2 of the Lotka–Volterra system with p = (1.5, 1, 3, 1), u(0) = (1, 1):
# CVODES' published digits (good to 2.4e-7), and DOP853 with the variational equations at 1e-13
LOTKA_VOLTERRA = {
    "p": (1.5, 1.0, 3.0, 1.0),
    "u_dop853": (1.026344767575091, 0.909691078136038),
    "dp_cvodes": (0.6219617362820864, 0.06800142032161892, 0.1691765074712130, 0.2725607529639176),
    "dp_dop853": (0.6219615855513, 0.068001404150873, 0.1691764639959, 0.27256069395001),
    "du0_dop853": (0.299599508303687, -0.014151816344858),
}


def rate_matrix(compartments: int, oral: bool = False, p: dict[str, float] = PARAMETERS) -> np.ndarray:
    """dA/dt = K·A written out by hand; with `oral` the depot comes first."""
    k = np.zeros((compartments, compartments))
    k[0, 0] = -p["CL"] / p["V1"]
    for n, (q, v) in enumerate((("Q", "V2"), ("Q3", "V3"))[: compartments - 1], start=1):
        k[0, 0] -= p[q] / p["V1"]
        k[n, 0] = p[q] / p["V1"]
        k[0, n] = p[q] / p[v]
        k[n, n] = -p[q] / p[v]
    if not oral:
        return k
    with_depot = np.zeros((compartments + 1,) * 2)
    with_depot[1:, 1:] = k
    with_depot[0, 0], with_depot[1, 0] = -p.get("KA", KA), p.get("KA", KA)
    return with_depot


@dataclass(frozen=True)
class Disposition:
    """C(t) = D·Σ a_i·exp(−λ_i·t) after a bolus into central."""

    a: np.ndarray
    rate: np.ndarray

    @classmethod
    def of(cls, compartments: int, p: dict[str, float] = PARAMETERS) -> "Disposition":
        """λ are the roots of s·(1 + Σ k1p/(s + kp1)) + k10 under s → −λ; a_i the residues there."""
        k10 = p["CL"] / p["V1"]
        out = [p[q] / p["V1"] for q in ("Q", "Q3")[: compartments - 1]]
        back = [p[q] / p[v] for q, v in (("Q", "V2"), ("Q3", "V3"))[: compartments - 1]]
        numerator = np.poly([-b for b in back]) if back else np.ones(1)
        denominator = np.polymul([1.0, k10 + sum(out)], numerator)
        for n, (k, b) in enumerate(zip(out, back, strict=True)):
            others = [-c for m, c in enumerate(back) if m != n]
            denominator = np.polysub(denominator, k * b * (np.poly(others) if others else np.ones(1)))
        roots = np.roots(denominator).real
        a = np.polyval(numerator, roots) / np.polyval(np.polyder(denominator), roots) / p["V1"]
        return cls(a, -roots)

    def _sum(self, t: np.ndarray, terms) -> np.ndarray:
        t = np.asarray(t, float)[..., None]
        return np.where(t[..., 0] >= 0, (self.a * terms(np.maximum(t, 0.0))).sum(-1), 0.0)

    def bolus(self, t, dose: float) -> np.ndarray:
        """Concentration t after a bolus, 0 before."""
        return self._sum(t, lambda t: dose * np.exp(-self.rate * t))

    def infusion(self, t, dose: float, duration: float) -> np.ndarray:
        """Concentration t after the start of an infusion."""
        rate = dose / duration
        return self._sum(
            t,
            lambda t: (
                rate
                / self.rate
                * -np.expm1(-self.rate * np.minimum(t, duration))
                * np.exp(-self.rate * np.maximum(t - duration, 0.0))
            ),
        )

    def oral(self, t, dose: float, ka: float = KA) -> np.ndarray:
        """Concentration t after a dose that is absorbed by first order."""
        return self._sum(t, lambda t: dose * ka / (ka - self.rate) * (np.exp(-self.rate * t) - np.exp(-ka * t)))

    def repeated_bolus(self, t, dose: float, interval: float) -> np.ndarray:
        """Concentration t after one of infinitely many boluses, 0 ≤ t ≤ interval."""
        return self._sum(t, lambda t: dose * np.exp(-self.rate * t) / -np.expm1(-self.rate * interval))

    def repeated_infusion(self, t, dose: float, interval: float, duration: float) -> np.ndarray:
        """Concentration t after the start of one of infinitely many infusions shorter than the interval."""
        left = dose / duration / self.rate * -np.expm1(-self.rate * duration) / -np.expm1(-self.rate * interval)
        earlier = self._sum(t, lambda t: left * np.exp(-self.rate * (t + interval - duration)))
        return earlier + self.infusion(t, dose, duration)

    def repeated_oral(self, t, dose: float, interval: float, ka: float = KA) -> np.ndarray:
        """Concentration t after one of infinitely many oral doses, 0 ≤ t ≤ interval."""

        def terms(t):
            disposed = np.exp(-self.rate * t) / -np.expm1(-self.rate * interval)
            return dose * ka / (ka - self.rate) * (disposed - np.exp(-ka * t) / -np.expm1(-ka * interval))

        return self._sum(t, terms)

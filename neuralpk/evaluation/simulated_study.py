"""Measured values beside those of simulated studies of the same design."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from neuralpk import randomness
from neuralpk.cohort import FloatArray
from neuralpk.diagnostics.below_quantification import BoolArray, imputed
from neuralpk.randomness import Stream

IntArray = NDArray[np.int64]

_LEAST_PER_VALUE = 4  # studies for each value of a patient: with fewer their covariance is not known


@dataclass(frozen=True)
class SimulatedStudy:
    """Values of a study in the first row, those of simulated studies of the same design in the others.

    Under the right model the rows are exchangeable, so that what holds for one simulated study among the others is what
    to expect of the data.

    Args:
        rows: places of the values among the records of the evaluation, ``[value]``.
        values: value unit, ``[1 + study, value]``; a measured one below the limit of quantification is its limit.
        below: which values lie below the limit of quantification, ``[1 + study, value]``.
        npde: normalised prediction distribution errors, ``[1 + study, value]`` (`prediction_errors`); values below the
            limit are imputed from the model, in all rows alike.
        not_decorrelated: patients with so many values that theirs could not be decorrelated.
    """

    rows: IntArray
    values: FloatArray
    below: BoolArray
    npde: FloatArray
    not_decorrelated: tuple[str, ...] = ()

    @classmethod
    def of(cls, records: pd.DataFrame, simulated: FloatArray, limits: FloatArray, seed: int) -> SimulatedStudy:
        """From the records of an evaluation and simulated values of all of them.

        Left out are values above an upper limit (CENS −1), those that are 0 in every study, as before the first dose,
        and those whose prediction is 0 or failed.

        Args:
            records: with ID, DVID, DV, PRED, and CENS where values are censored.
            simulated: ``[study, record]``.
            limits: of quantification, minus infinity for none, ``[record]``.
            seed: of the imputation.
        """
        censored = records["CENS"].to_numpy() if "CENS" in records else np.zeros(len(records), np.int64)
        pred = records["PRED"].to_numpy()
        usual = np.isfinite(pred) & (pred != 0) & np.isfinite(simulated).all(axis=0)
        rows = np.flatnonzero((censored >= 0) & usual & (np.ptp(simulated, axis=0) > 0))
        observed, drawn, limit = records["DV"].to_numpy()[rows], simulated[:, rows], limits[rows]
        below = np.vstack([censored[rows] > 0, drawn < limit])
        filled = np.vstack([observed, drawn])
        if below[0].any():
            stream = Stream.REPLICATES.at(len(drawn))
            uniform = randomness.uniform(seed, stream, torch.arange(1 + len(drawn)), len(rows)).numpy()
            filled = np.vstack(imputed(observed, drawn, below[0], limit, uniform))
        used = records.iloc[rows]
        npde, many = np.empty_like(filled), []
        for own in used.groupby(["ID", "DVID"], sort=False).indices.values():
            npde[:, own], decorrelated = prediction_errors(filled[:, own])
            many += [] if decorrelated else [str(used["ID"].iloc[own[0]])]
        return cls(rows, np.vstack([observed, drawn]), below, npde, tuple(dict.fromkeys(many)))

    def __len__(self) -> int:
        """Number of simulated studies."""
        return len(self.values) - 1

    def select(self, chosen: BoolArray) -> SimulatedStudy:
        """Some of the values."""
        values, below, npde = self.values[:, chosen], self.below[:, chosen], self.npde[:, chosen]
        return SimulatedStudy(self.rows[chosen], values, below, npde, self.not_decorrelated)


def prediction_errors(values: FloatArray) -> tuple[FloatArray, bool]:
    """Normalised prediction distribution errors of one patient in every study, ``[study, value]``: the values are
    decorrelated by the Cholesky factor of their covariance over studies, and the rank of each among the studies goes
    through the normal quantile (Brendel et al. 2006, Pharm Res 23:2036). The data are one of the studies.

    Args:
        values: ``[study, value]``.

    Returns:
        The errors, and whether the values were decorrelated: there have to be `_LEAST_PER_VALUE` times as many studies.
    """
    centred = values - values.mean(axis=0)
    unit = centred / np.maximum(centred.std(axis=0, ddof=1), np.finfo(np.float64).tiny)
    decorrelated = len(values) >= _LEAST_PER_VALUE * values.shape[1]
    if decorrelated:
        # values that repeat each other would make the factor singular
        covariance = unit.T @ unit / (len(unit) - 1) + 1e-9 * np.eye(unit.shape[1])
        unit = np.linalg.solve(np.linalg.cholesky(covariance), unit.T).T
    rank = unit.argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    fraction = torch.as_tensor((rank + 0.5) / len(unit), dtype=torch.float64)
    return np.asarray(torch.special.ndtri(fraction).numpy(), np.float64), decorrelated

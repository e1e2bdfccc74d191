"""Two models judged on one table, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from neuralpk.atomic_files import replacing
from neuralpk.evaluation.evaluation import COLUMN, Evaluation

if TYPE_CHECKING:  # Matplotlib, which is imported where something is drawn
    from matplotlib.figure import Figure

COMPARISON_FILES = ("comparison.csv", "comparison_pcvpc.png", "comparison_fit.png")
"""Files of `Comparison.write`."""


@dataclass(frozen=True)
class Comparison:
    """Two evaluations on the same table.

    Args:
        first: of one model.
        second: of the other.
        names: of the models, in tables and above panels.

    Raises:
        ValueError: evaluations on different values; two models of one name.
    """

    first: Evaluation
    second: Evaluation
    names: tuple[str, str] = ("A", "B")

    def __post_init__(self) -> None:
        columns = ["ID", "TIME", "DVID", "DV"]
        left, right = (one.records[columns].reset_index(drop=True) for one in (self.first, self.second))
        if not left.equals(right):
            raise ValueError("two models are compared on the same values: evaluate both on one table")
        if self.names[0] == self.names[1]:
            raise ValueError(f"two models need two names, got {self.names[0]} twice")

    @property
    def table(self) -> pd.DataFrame:
        """QUANTITY, DVID, a column for each model and their DIFFERENCE (second − first): −2 log p(data), AIC and BIC
        where both have a likelihood, RMSE and bias of PRED and IPRED, p of the global test of the NPDE, failed checks,
        and whether the model is adequate (1 or 0)."""
        rows: list[tuple[str, int | None, Any, Any]] = []
        one, other = self.first.likelihood, self.second.likelihood
        if one and other:
            rows += [(name, None, one[name], other[name]) for name in one]
        errors = [one.errors.set_index(["DVID", "PREDICTION"]) for one in (self.first, self.second)]
        for endpoint, prediction in errors[0].index:
            for quantity in ("RMSE", "BIAS"):
                left, right = (own.loc[(endpoint, prediction), quantity] for own in errors)
                rows.append((f"{quantity} {prediction}", endpoint, left, right))
        verdicts = [one.verdict for one in (self.first, self.second)]
        rows.append(("P NPDE", None, self.first.npde_p, self.second.npde_p))
        rows.append(("CHECKS FAILED", None, len(verdicts[0]["failed"]), len(verdicts[1]["failed"])))
        adequate = [float("nan") if own["adequate"] is None else float(own["adequate"]) for own in verdicts]
        rows.append(("ADEQUATE", None, adequate[0], adequate[1]))
        frame = pd.DataFrame(rows, columns=["QUANTITY", "DVID", *self.names])
        frame["DIFFERENCE"] = frame[self.names[1]].astype(float) - frame[self.names[0]].astype(float)
        return frame.astype({"DVID": "Int64"})

    @property
    def sentence(self) -> str:
        """The two verdicts, and which model the data support where both have a likelihood."""
        said = [f"{name}: {one.sentence}" for name, one in zip(self.names, (self.first, self.second), strict=True)]
        if self.first.likelihood and self.second.likelihood:
            bic = [one.likelihood["BIC"] for one in (self.first, self.second)]
            better = self.names[0] if bic[0] <= bic[1] else self.names[1]
            said.append(f"BIC is lower by {abs(bic[0] - bic[1]):.1f} for {better}")
        return ". ".join(said)

    def figure(self, name: str = "pcvpc", *, log: bool = False, width: float = COLUMN, **options: Any) -> Figure:
        """The models side by side: ``vpc``, ``pcvpc`` (options as of `Evaluation.figure`) or ``fit``, DV against PRED
        and IPRED.

        Raises:
            ValueError: another name; a model that cannot simulate values.
        """
        from neuralpk.evaluation import evaluation_figures as drawn

        units = self.first.units_of(options.get("endpoint") or self.first.endpoints[0])
        if name == "fit":
            records = {
                title: own.data("goodness_of_fit", **options)
                for title, own in zip(self.names, (self.first, self.second), strict=True)
            }
            return drawn.compared_fit_figure(records, units, width, log)
        if name not in ("vpc", "pcvpc"):
            raise ValueError(f"two models are compared in vpc, pcvpc and fit, not {name!r}")
        frames = [own.check_and_points(name, **options) for own in (self.first, self.second)]
        titled = [
            [part.assign(STRATUM=(title + " " + part["STRATUM"]).str.strip()) for part in pair]
            for title, pair in zip(self.names, frames, strict=True)
        ]
        check, points = (pd.concat(parts, ignore_index=True) for parts in zip(*titled, strict=True))
        quantity = drawn.QUANTITIES[name]
        against = options.get("against") or "TIME"
        return drawn.vpc_figure(check, points, units, width, log, against, quantity)

    def write(self, folder: str | Path, log: bool = False, dpi: int = 300) -> list[Path]:
        """Write `COMPARISON_FILES` into a folder; the VPC only where both models simulate values."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / COMPARISON_FILES[0]]
        with replacing(paths[0]) as part:
            self.table.to_csv(part, index=False)
        for name, file in zip(("pcvpc", "fit"), COMPARISON_FILES[1:], strict=True):
            if name == "fit" or all("pcvpc" in one.figures for one in (self.first, self.second)):
                paths.append(folder / file)
                with replacing(paths[-1]) as part:
                    self.figure(name, log=log).savefig(part, dpi=dpi)
        return paths

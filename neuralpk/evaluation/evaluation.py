"""The evaluation of a model on a table: frames, figures and a verdict."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from neuralpk.atomic_files import replacing
from neuralpk.cohort import Units
from neuralpk.diagnostics.metrics import Calibration, calibration
from neuralpk.diagnostics.record_bins import bins_along, bins_over_time, doses_repeat
from neuralpk.evaluation.checks import LEVEL, enough_studies
from neuralpk.evaluation.predictive_check import check_frame, corrected
from neuralpk.evaluation.simulated_study import IntArray, SimulatedStudy

if TYPE_CHECKING:  # Matplotlib, which is imported where something is drawn: the work does not wait for it
    from matplotlib.figure import Figure

_PANELS = 15
_WRITTEN_PAGES = 4  # of individual panels
_LEVELS = 4  # distinct numbers, up to which each is a stratum of its own

COLUMN, PAGE = 85.0, 180.0
"""Widths of figures in journals, mm."""

FIGURES = {
    "goodness_of_fit": "DV against predictions, residuals against predictions, time and time after dose",
    "individuals": "curve and samples of each patient",
    "random_effects": "distributions of the random effects, with shrinkage",
    "covariates": "random effects against covariates",
    "vpc": "visual predictive check",
    "pcvpc": "prediction-corrected visual predictive check",
    "npde": "normalised prediction distribution errors: distribution, against time and predictions",
}
"""Figures of an evaluation, by name."""

TABLES = (
    "records.csv",
    "parameters.csv",
    "random_effects.csv",
    "shrinkage.csv",
    "errors.csv",
    "checks.csv",
    "calibration.csv",
    "vpc.csv",
    "pcvpc.csv",
    "individuals.csv",
    "occasions.csv",
    "curves.csv",
    "unseen_covariates.csv",
)
"""Files that `Evaluation.write` makes of the frames."""

VERDICT = "verdict.json"
"""File of `Evaluation.verdict`."""


@dataclass(frozen=True)
class Evaluation:
    """How well a model describes the data of a table (`neuralpk.evaluate`).

    Attributes:
        records: a row for each measured value: ID, TIME, DVID, DV, PRED, IPRED, RES (DV − PRED), IRES, IWRES, WRES,
            CWRES, NPDE, TAD (time after dose), DOSES (given before), CENS and LLOQ where values are censored, the
            covariates of the model and the strata. A residual that does not exist is NaN.
        parameters: a row for each number of the population: PARAMETER, ESTIMATE, LO95, HI95, RSE (%), OMEGA, CV (%),
            SHRINKAGE (%), … (`neuralpk.estimation.standard_errors.PopulationEstimate`).
        random_effects: a row for each patient: ID, ETA_CL, …, then covariates and strata at the first record.
        shrinkage: PARAMETER, OMEGA, SD of the estimated random effects, SHRINKAGE (%).
        errors: bias and root mean square error by DVID and PREDICTION (PRED, IPRED): N, BIAS (mean of the prediction
            minus DV), RMSE, both in the unit of the values, BIAS_PERCENT and RMSE_PERCENT relative to DV (where it is
            positive).
        individuals: a row for each patient: ID and every parameter with its 90 % interval
            (`neuralpk.individual_estimates.IndividualEstimates.individuals`).
        occasions: of a population with variability between occasions ID, OCC and every parameter on that occasion with
            its random effect KAPPA_CL, …, and their 90 % intervals; else without rows.
        curves: ID, TIME, DVID, PRED, IPRED, LO90, HI90 of every patient.
        doses: ID, TIME, AMT of every dose.
        checks: CHECK, DVID, STATISTIC, LIMIT, P, P_ADJUSTED, PASSED, MEANING (`neuralpk.evaluation.checks.judge`).
        npde_p: p of the global test of the NPDE; NaN without simulations.
        unseen_covariates: patients with a covariate outside the range of the data that the model has learned from:
            COVARIATE, ID, VALUE, SEEN_LOW, SEEN_HIGH.
        likelihood: OBJECTIVE (−2 log p(data)), ERROR (its Monte-Carlo standard error), AIC, BIC, PARAMETERS,
            OBSERVATIONS; empty where it was not asked for or does not exist.
        remarks: what was left out and why, a sentence each.
        unsolved: why some patients have NaN instead of estimates, one sentence each with the name, also in `remarks`.
        description: what the model is.
        status: how its population fit ended; empty where that is not known.
        units: of the table.
        settings: of the evaluation: model, table, patients, simulations, seed, version.
        study: the measured and the simulated values; None for a model that cannot simulate values.
    """

    records: pd.DataFrame
    parameters: pd.DataFrame
    random_effects: pd.DataFrame
    shrinkage: pd.DataFrame
    errors: pd.DataFrame
    individuals: pd.DataFrame
    occasions: pd.DataFrame
    curves: pd.DataFrame
    doses: pd.DataFrame
    checks: pd.DataFrame
    npde_p: float
    unseen_covariates: pd.DataFrame
    likelihood: Mapping[str, float]
    remarks: tuple[str, ...]
    unsolved: tuple[str, ...]
    description: str
    status: str
    units: Units
    settings: Mapping[str, Any]
    study: SimulatedStudy | None = field(repr=False)

    @property
    def endpoints(self) -> tuple[int, ...]:
        """DVID of the values."""
        return tuple(int(one) for one in sorted(self.records["DVID"].unique()))

    @property
    def covariates(self) -> tuple[str, ...]:
        """Covariates and strata, columns of `records` and `random_effects`."""
        return tuple(name for name in map(str, self.random_effects) if name != "ID" and not name.startswith("ETA_"))

    @property
    def repeats(self) -> bool:
        """Whether doses repeat, so that time after dose is not time."""
        return doses_repeat(self.records)

    @property
    def can_fail(self) -> bool:
        """Whether a model could fail a check: not without checks, nor with so few simulated studies that the smallest
        P, adjusted for the number of checks, is no smaller than the level."""
        return bool(np.isfinite(self.checks["LIMIT"].to_numpy(float)).any())

    @property
    def pages(self) -> int:
        """Number of pages of individual panels."""
        return -(-self.curves["ID"].nunique() // _PANELS)

    @property
    def calibration(self) -> pd.DataFrame:
        """How well simulated studies foretell what was measured, a row for each endpoint: DVID and what
        `neuralpk.diagnostics.metrics.Calibration` says; values below the limit of quantification count only among the
        NPDE. Without rows for a model that cannot simulate values."""
        rows = []
        for own in self.endpoints if self.study is not None else ():
            assert self.study is not None
            part = self.study.select((self.records["DVID"].to_numpy() == own)[self.study.rows])
            measured = ~part.below[0]
            if measured.any():
                known = part.values[:, measured]
                rows.append({"DVID": own} | asdict(calibration(known[0], known[1:], part.npde[0])))
        return pd.DataFrame(rows, columns=["DVID", *(one.name for one in fields(Calibration))])

    @property
    def verdict(self) -> dict[str, Any]:
        """Which checks have passed, as plain values: adequate (None where no check could fail), rule, level, p of
        the global test of the NPDE, checks, remarks, settings."""
        rows = json.loads(self.checks.to_json(orient="records"))
        passed = bool(self.checks["PASSED"].all()) if self.can_fail else None
        return {
            "adequate": passed,
            "failed": [row["CHECK"] + self._of(row["DVID"]) for row in rows if not row["PASSED"]],
            "rule": "a check fails where the adjusted p of its statistic among simulated studies is below the level; "
            "the model is adequate where none fails, which holds for a right model with probability 1 − level",
            "level": LEVEL,
            "npde": {"p": None if np.isnan(self.npde_p) else self.npde_p},
            "checks": [{key.lower(): value for key, value in row.items()} for row in rows],
            "unseen_covariates": sorted(set(self.unseen_covariates["COVARIATE"])),
            "likelihood": dict(self.likelihood),
            "remarks": list(self.remarks),
            "model": self.description,
            "status": self.status,
            "settings": dict(self.settings),
        }

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        if not len(self.checks):
            return "No check of the model was possible"
        if not self.can_fail:
            return (
                f"No verdict: with {self.settings['simulations']} simulated studies none of {len(self.checks)} checks "
                f"could fail; {enough_studies(len(self.checks))} are enough"
            )
        failed = self.verdict["failed"]
        if not failed:
            return f"Adequate: all {len(self.checks)} checks passed"
        return f"Not adequate: {len(failed)} of {len(self.checks)} checks failed ({', '.join(failed)})"

    # ---- figures and their data

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that this evaluation has, of `FIGURES`."""
        effects = len(self.shrinkage) > 0
        possible = {
            "random_effects": effects,
            "covariates": effects and len(self.covariates) > 0,
            "vpc": bool(self._checked("vpc")),
            "pcvpc": bool(self._checked("pcvpc")),
            "npde": self.study is not None,
        }
        return tuple(name for name in FIGURES if possible.get(name, True))

    def data(self, name: str, **options: Any) -> pd.DataFrame:
        """What a figure shows, as a frame; arguments as of `figure`, without those of its looks.

        The frame of ``vpc`` and ``pcvpc`` has a row for each bin: STRATUM, BIN, N, X (median of TIME or TAD), X_LOW,
        X_HIGH, the percentiles of the data and of the simulated studies (P5_OBSERVED, P5_LO90, P5_MEDIAN, P5_HI90,
        P50_…, P95_…) and, with values below the limit of quantification, their share (BLQ_OBSERVED, …).
        """
        self._refuse_unknown(name)
        if name in ("vpc", "pcvpc"):
            return self.check_and_points(name, **options)[0]
        if name in ("random_effects", "covariates"):
            return self.random_effects
        own = self._of_endpoint(options.get("endpoint"))
        if name == "individuals":
            lines = self.curves[self.curves["DVID"] == own]
            return lines[lines["ID"].isin(self._shown(options.get("subjects"), options.get("page", 1)))]
        return self.records[self.records["DVID"] == own].reset_index(drop=True)

    def figure(
        self,
        name: str,
        *,
        endpoint: int | None = None,
        by: str | None = None,
        against: str | None = None,
        subjects: Sequence[str] | None = None,
        page: int = 1,
        log: bool = False,
        width: float = COLUMN,
    ) -> Figure:
        """One of the figures (`FIGURES`).

        Args:
            name: of the figure.
            endpoint: DVID; None for the first.
            by: of ``vpc`` and ``pcvpc``, covariate or stratum: a panel for each level, of a number with more than 4
                values below and above its median.
            against: of ``vpc`` and ``pcvpc``, TIME or TAD; None for TIME.
            subjects: of ``individuals``, IDs; None for 15 a page.
            page: of ``individuals``, from 1.
            log: logarithmic values.
            width: mm; 85 is a column of a journal, 180 a page.

        Raises:
            ValueError: a figure, column, endpoint or patient that is not there.
        """
        from neuralpk.evaluation import evaluation_figures

        self._refuse_unknown(name)
        if name == "random_effects":
            return evaluation_figures.random_effects_figure(self.random_effects, self.shrinkage, width)
        if name == "covariates":
            effects = list(self.shrinkage["PARAMETER"])
            return evaluation_figures.covariates_figure(self.random_effects, effects, self.covariates, width)
        own = self._of_endpoint(endpoint)
        if name in ("vpc", "pcvpc"):
            check, points = self.check_and_points(name, endpoint=own, by=by, against=against)
            what = evaluation_figures.QUANTITIES[name]
            return evaluation_figures.vpc_figure(check, points, self.units_of(own), width, log, against or "TIME", what)
        records = self.records[self.records["DVID"] == own]
        if name == "individuals":
            lines = self.data("individuals", endpoint=own, subjects=subjects, page=page)
            return evaluation_figures.individuals_figure(lines, records, self.doses, self.units_of(own), width, log)
        if name == "npde":
            return evaluation_figures.npde_figure(records, self.units_of(own), width)
        return evaluation_figures.fit_figure(records, self.units_of(own), width, log)

    def write(
        self, folder: str | Path, by: Sequence[str] = (), against: str | None = None, log: bool = False, dpi: int = 300
    ) -> list[Path]:
        """Write the frames as `TABLES`, every figure as PNG (of ``individuals`` the first 4 pages) and, last of all,
        the verdict as `VERDICT` into a folder.

        Args:
            folder: is made where it does not exist.
            by: columns by which the visual predictive checks are stratified, each in files of its own.
            against: of the visual predictive checks, TIME or TAD; None for TIME, where doses repeat also TAD.
            log: logarithmic values.
            dpi: of the figures.

        Returns:
            Paths of the files.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for name in TABLES:
            stem = name.removesuffix(".csv")
            if (stem in FIGURES and stem not in self.figures) or (stem == "occasions" and not len(self.occasions)):
                continue
            frame = self._checks_by_endpoint(stem) if stem in ("vpc", "pcvpc") else getattr(self, stem)
            paths.append(folder / name)
            with replacing(paths[-1]) as part:
                frame.to_csv(part, index=False)
        for name, figure in self.drawn(by=by, against=against, log=log):
            paths.append(folder / f"{name}.png")
            with replacing(paths[-1]) as part:
                figure.savefig(part, dpi=dpi)
        paths.append(folder / VERDICT)
        with replacing(paths[-1]) as part:
            part.write_text(json.dumps(self.verdict, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return paths

    def _checks_by_endpoint(self, name: str) -> pd.DataFrame:
        parts = [self.data(name, endpoint=own).assign(DVID=own) for own in self._checked(name)]
        return pd.concat(parts, ignore_index=True)

    def _checked(self, name: str) -> list[int]:
        """DVID of the endpoints that have a visual predictive check: values that studies were simulated of, and, to be
        prediction-corrected, that are predicted to be positive."""
        if self.study is None:
            return []
        used = self.records.iloc[self.study.rows]
        used = used[used["PRED"] > 0] if name == "pcvpc" else used
        return [own for own in self.endpoints if (used["DVID"] == own).any()]

    def drawn(
        self,
        names: Sequence[str] | None = None,
        *,
        by: Sequence[str] = (),
        against: str | None = None,
        log: bool = False,
        width: float = COLUMN,
    ) -> Iterator[tuple[str, Figure]]:
        """Figures, of every endpoint, each with the name of its file.

        Args:
            names: of `FIGURES`; None for all that this evaluation has. Those that it has not are left out.
            by: columns by which the visual predictive checks are stratified, each in a figure of its own.
            against: of the visual predictive checks, TIME or TAD; None for TIME, where doses repeat also TAD.
            log: logarithmic values.
            width: mm.
        """
        for name in self.figures if names is None else [one for one in names if one in self.figures]:
            of_all, check = name in ("random_effects", "covariates"), name in ("vpc", "pcvpc")
            endpoints = self._checked(name) if check else self.endpoints[:1] if of_all else self.endpoints
            for own in endpoints:
                stem = name if of_all or len(self.endpoints) == 1 else f"{name}_{own}"
                if name == "individuals":
                    for page in range(1, 1 + min(self.pages, _WRITTEN_PAGES)):
                        where = stem if page == 1 else f"{stem}_page{page}"
                        yield where, self.figure(name, endpoint=own, page=page, log=log, width=width)
                    continue
                if not check:
                    yield stem, self.figure(name, endpoint=own, log=log, width=width)
                    continue
                axes = (against,) if against else ("TIME", "TAD") if self.repeats else ("TIME",)
                for axis in axes:
                    end = "" if axis == "TIME" else f"_{axis}"
                    yield stem + end, self.figure(name, endpoint=own, against=axis, log=log, width=width)
                    for column in by:
                        where = f"{stem}_by_{_in_file_name(column)}{end}"
                        yield where, self.figure(name, endpoint=own, by=column, against=axis, log=log, width=width)

    def units_of(self, endpoint: int) -> Units:
        """Units of an endpoint: those of the table are of the first, and of another the value has none that is
        known."""
        return self.units if endpoint == 1 else self.units._replace(value="")

    def _of(self, endpoint: int) -> str:
        return f", DVID {endpoint}" if len(self.endpoints) > 1 else ""

    def _refuse_unknown(self, name: str) -> None:
        if name not in FIGURES:
            raise ValueError(f"there is no figure {name!r}; there are {', '.join(FIGURES)}")
        if name not in self.figures:
            raise ValueError(f"this evaluation has no figure {name}: {'; '.join(self.remarks) or 'nothing to show'}")

    def _of_endpoint(self, endpoint: int | None) -> int:
        if endpoint is None:
            return self.endpoints[0]
        if endpoint not in self.endpoints:
            raise ValueError(f"there is no endpoint {endpoint}; DVID here are {', '.join(map(str, self.endpoints))}")
        return endpoint

    def _shown(self, subjects: Sequence[str] | None, page: int) -> list[str]:
        ids = list(dict.fromkeys(self.curves["ID"]))
        if subjects is not None:
            unknown = [str(one) for one in subjects if str(one) not in ids]
            if unknown:
                raise ValueError(f"there is no patient {', '.join(unknown)}; the first are {', '.join(ids[:5])}")
            return [str(one) for one in subjects]
        if not 1 <= page <= self.pages:
            raise ValueError(f"there are pages 1 to {self.pages} of individual panels, not {page}")
        return ids[_PANELS * (page - 1) : _PANELS * page]

    def check_and_points(
        self, name: str, endpoint: int | None = None, by: str | None = None, against: str | None = None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The frame of ``vpc`` or ``pcvpc`` as of `data`, and the observations of its figure: STRATUM, X, VALUE;
        arguments as of `figure`."""
        self._refuse_unknown(name)
        assert self.study is not None
        axis, correct = against or "TIME", name == "pcvpc"
        if axis not in ("TIME", "TAD"):
            raise ValueError(f"a visual predictive check is against TIME or TAD, not {axis!r}")
        records = self.records.iloc[self.study.rows]
        usable = (records["DVID"] == self._of_endpoint(endpoint)).to_numpy() & records[axis].notna().to_numpy()
        if correct:
            usable &= (records["PRED"] > 0).to_numpy()
        checks, points = [], []
        for stratum, chosen in self._strata(records, by):
            own = usable & chosen
            if not own.any():
                continue
            study, rows = self.study.select(own), records[own]
            x = rows[axis].to_numpy(float)
            bins = study_bins(rows, axis)
            values = corrected(study.values, rows["PRED"].to_numpy(float), bins) if correct else study.values
            checks.append(check_frame(x, values, study.below, bins).assign(STRATUM=stratum))
            seen = ~study.below[0]
            points.append(pd.DataFrame({"STRATUM": stratum, "X": x[seen], "VALUE": values[0][seen]}))
        if not checks:
            raise ValueError(f"no value for a visual predictive check against {axis}")
        frame = pd.concat(checks, ignore_index=True)
        return frame[["STRATUM", *(name for name in frame if name != "STRATUM")]], pd.concat(points, ignore_index=True)

    def _strata(self, records: pd.DataFrame, by: str | None) -> list[tuple[str, NDArray[np.bool_]]]:
        if by is None:
            return [("", np.ones(len(records), bool))]
        if by not in records or by in ("ID", "DV"):
            known = ", ".join(self.covariates) or "none"
            raise ValueError(f"there is no column {by!r} to stratify by; there are {known}. Name others as strata")
        values = records[by]
        without = [(f"{by} missing", values.isna().to_numpy())] if values.isna().any() else []
        if pd.api.types.is_numeric_dtype(values) and values.nunique() > _LEVELS:
            middle = float(values.median())
            return [
                (f"{by} ≤ {middle:.4g}", (values <= middle).to_numpy()),
                (f"{by} > {middle:.4g}", (values > middle).to_numpy()),
                *without,
            ]
        levels = sorted(values.dropna().unique(), key=str)
        return [
            (f"{by} {one:g}" if isinstance(one, float | int) else f"{by} {one}", (values == one).to_numpy())
            for one in levels
        ] + without


def _in_file_name(column: str) -> str:
    return re.sub(r"[^\w.-]", "_", column)


def study_bins(records: pd.DataFrame, against: str) -> IntArray:
    """Bins of records along TIME, in which dosing intervals and phases of them stay apart, along TAD, or along another
    column."""
    if against == "TIME":
        since, doses = records["TAD"].to_numpy(float), records["DOSES"].to_numpy(np.int64)
        return bins_over_time(records["TIME"].to_numpy(float), since, doses)
    return bins_along(records[against].to_numpy(float))

"""The report at the end of a training: tables, checks and figures beside the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralpk.atomic_files import replacing
from neuralpk.callbacks.tensorboard import parts_of, writers_of
from neuralpk.cohort_figures import (
    SimulatedStudy,
    curve_errors,
    first_seen,
    population_figures,
    save_panels,
    simulate_study,
)
from neuralpk.datamodules import CohortDataModule
from neuralpk.diagnostics.simulation_checks import Calibration, calibration
from neuralpk.estimation.standard_errors import PopulationEstimate
from neuralpk.published_population import PublishedPopulation, write_population
from neuralpk.task import LatentTask

_MOST_RSE = 1000  # percent: wider digits would push the names out of the table
_WITH_INTERVALS = 200  # patients


def _reference(value: object) -> str:
    """Of a covariate effect, a number or the level of a text; empty for other rows."""
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) and not np.isnan(value) else ""


class Report(L.Callback):
    """Report at the end of a training: the population and its checks (of an objective that maximises the likelihood), a
    table of the errors, individual panels beside the checkpoints, and the commands that come next.

    Args:
        subjects: how many panels.
    """

    def __init__(self, subjects: int = 15) -> None:
        if subjects < 1:
            raise ValueError(f"subjects must be 1 or more, got {subjects}")
        self.subjects = subjects
        self.console = Console(highlight=False, soft_wrap=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parts = parts_of(trainer, pl_module)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # all processes together: rank 0 tells it
        if parts is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        task, data = parts
        folder.mkdir(parents=True, exist_ok=True)
        self._say(f"This model was {task.provenance.description}")
        callback = trainer.checkpoint_callback
        last = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        if task.covariance is not None:
            self._population(data, task, task.covariance, folder)
            self._checks(trainer, data, task, folder)
        self._errors(data, task)
        self._panels(data, task, folder)
        self._population_file(task, folder)
        self._estimates(data, task, folder)
        if last:
            self._next(folder, last)

    def _say(self, text: str) -> None:
        """Print a line as it is: names and paths may hold what rich takes for markup."""
        self.console.print(Text(text))

    def _population(self, data: CohortDataModule, task: LatentTask, estimate: PopulationEstimate, folder: Path) -> None:
        frame = pd.DataFrame(estimate.rows)
        notes = {"TRACK": task.provenance.description}
        if estimate.status is not None:
            notes["STATUS"] = estimate.status.word
        with replacing(folder / "population.csv") as part:
            frame.assign(**notes).to_csv(part, index=False)
        table = Table(
            title=Text(f"Population of the {len(data.part('train'))} training patients"),
            caption=Text(task.provenance.description),
        )
        table.add_column("parameter", overflow="fold")
        relative = "REFERENCE" in frame
        for column in ("estimate", *(["reference"] if relative else []), "RSE", "95 % CI", "CV", "shrinkage"):
            table.add_column(column, justify="right", no_wrap=True)
        units = task.model.dynamics.units
        for row in frame.to_dict("records"):
            fixed = np.isnan(row["RSE"])
            ends = "" if fixed else f"{row['LO95']:.3g} to {row['HI95']:.3g}"
            error = "fixed" if fixed else f"{row['RSE']:.0f} %" if row["RSE"] < _MOST_RSE else f"> {_MOST_RSE} %"
            varied = [row.get(name, np.nan) for name in ("CV", "SHRINKAGE")]
            varies = ["" if np.isnan(value) else f"{value:.0f} %" for value in varied]
            reference = [_reference(row["REFERENCE"])] if relative else []
            name = row["PARAMETER"]
            name += f" ({units[name]})" if name in units else ""
            table.add_row(Text(name), f"{row['ESTIMATE']:.3g}", *reference, error, ends, *varies)
        self.console.print(table)
        kinds = frame.groupby("INTERVAL")["PARAMETER"].agg(", ".join).drop("", errors="ignore")
        which = [f"{kind} ({names})" for kind, names in kinds.items()] if len(kinds) > 1 else list(kinds.index)
        self._say(f"95 % CI: {', '.join(which) or 'none'}")
        likelihood = f"-2 log-likelihood {-2 * estimate.log_likelihood:.2f} (± {2 * estimate.error:.2f} Monte Carlo)"
        # every weight of a network counts as a parameter there, though a prior holds it: not a number to compare by
        networks = task.model.population.networks_by_parameter()
        criteria = "" if task.model.has_network or networks else f", AIC {estimate.aic:.2f}, BIC {estimate.bic:.2f}"
        self._say(f"{likelihood}{criteria}; table: {folder / 'population.csv'}")
        for name, effect in networks:
            zero = ", ".join(f"{covariate} {value:.4g}" for covariate, value in effect.references().items())
            self._say(
                f"{name}~{'+'.join(effect.covariates)}: a network, 0 at {zero}; effective number of weights "
                f"{effect.freedom:.1f} of {effect.weight.numel()}"
            )
        if task.model.population.learned and task.model.with_prior():
            self._say(f"A prior holds {', '.join(task.model.with_prior())} near the starting value")
        if estimate.status is not None:
            self._say(f"Population fit: {estimate.status.sentence}")

    def _population_file(self, task: LatentTask, folder: Path) -> None:
        """The population as plain numbers, where they say all of it."""
        assert task.model.scaling is not None
        try:
            population = PublishedPopulation.from_model(task.model, task.model.scaling.units)
        except ValueError as error:
            self._say(f"No population file: {error}")
            return
        note = "" if task.status is None else f"Population fit: {task.status.sentence}"
        write_population(population, folder / "pop.yaml", note)
        self._say(f"Population file: {folder / 'pop.yaml'}")

    def _checks(self, trainer: L.Trainer, data: CohortDataModule, task: LatentTask, folder: Path) -> None:
        """Calibration of the population, visual predictive check, npde and random effects of the training subjects,
        beside the checkpoints and in TensorBoard."""
        cohort = data.part("train")
        studies = simulate_study(task, cohort)
        self._calibration(studies, cohort.units.value, folder)
        figures = population_figures(task, cohort, studies)
        for name, figure in figures.items():
            with replacing(folder / f"{name.replace(' ', '_')}.png") as part:
                figure.savefig(part, dpi=130)
            for writer in writers_of(trainer):
                writer.add_figure(f"population/{name}", figure, trainer.global_step)
        self._say(f"Checks of the population: {', '.join(figures)}, beside it")

    def _calibration(self, studies: Mapping[int, SimulatedStudy], unit: str, folder: Path) -> None:
        found = {dvid: _calibrated(own) for dvid, own in studies.items()}
        rows = [{"DVID": dvid} | asdict(one) for dvid, one in found.items()]
        with replacing(folder / "calibration.csv") as part:
            pd.DataFrame(rows).to_csv(part, index=False)
        for dvid, one in found.items():
            endpoint = f", endpoint {dvid}" if len(found) > 1 else ""
            self._say(
                f"Simulated from the population, {one.observations} values{endpoint}: {100 * one.cover90:.0f} % "
                f"within their 90 % intervals, CRPS {one.crps:.3g} {unit} (absolute error of the medians "
                f"{one.absolute:.3g}), npde mean {one.npde_mean:+.2f}, sd {one.npde_sd:.2f}{_imputed(studies[dvid])}"
            )

    def _errors(self, data: CohortDataModule, task: LatentTask) -> None:
        for name, cohort in (("the training patients", data.part("train")), ("new patients", data.part("test"))):
            if name == "new patients" and set(cohort.ids) <= set(data.part("train").ids):
                continue
            errors = curve_errors(data, task, cohort)
            if not errors:
                continue
            table = Table(title=f"Error of the curve against the truth, {len(cohort)} of {name}")
            table.add_column("reconstruction by", no_wrap=True)
            for column in ("curve, rel. RMSE", "AUC, rel. RMSE", "AUC, mean error"):
                table.add_column(column, justify="right", no_wrap=True)
            for by, (curve, auc) in errors.items():
                rmse = np.sqrt(np.mean(auc**2))
                table.add_row(by, f"{curve.mean():.3f}", f"{100 * rmse:.1f} %", f"{100 * auc.mean():+.1f} %")
            self.console.print(table)

    def _panels(self, data: CohortDataModule, task: LatentTask, folder: Path) -> None:
        cohort = data.part("val")[: self.subjects]
        result = task.reconstruct(cohort, context=first_seen(data))
        for path in save_panels(cohort, result, folder, first_seen(data)):
            self._say(f"Individual panels: {path}")

    def _estimates(self, data: CohortDataModule, task: LatentTask, folder: Path) -> None:
        """Tables of the training patients; of many patients, and of a network, without intervals, which take long."""
        cohort = data.part("train")
        many = len(cohort) > _WITH_INTERVALS or task.model.has_network
        paths = task.reconstruct(cohort, draws=0 if many else 200).write(folder)
        without = ", without intervals (neuralpk estimate computes them)" if many else ""
        self._say(f"Tables of the training patients: {', '.join(map(str, paths))}{without}")

    def _next(self, folder: Path, checkpoint: str) -> None:
        for what, command in (
            ("open the dashboard", f"tensorboard --logdir {folder}"),
            (
                "load the model in Python",
                'python -c "from neuralpk.task import LatentTask; '
                f"print(LatentTask.load_from_checkpoint('{checkpoint}').model)\"",
            ),
            (
                "estimate your own patients",
                f"neuralpk estimate --model {checkpoint} --table T.csv --out DIR",
            ),
            (
                "write everything about the model and its data as one HTML file",
                f"neuralpk report --model {checkpoint} --table T.csv --out report.html",
            ),
        ):
            self._say(f"To {what}:\n  {command}")


def _calibrated(study: SimulatedStudy) -> Calibration:
    """Scores of the values that were measured; npde of those below the limit too."""
    measured = ~study.below
    return calibration(study.observed[measured], study.simulated[:, measured], study.npde)


def _imputed(study: SimulatedStudy) -> str:
    count = int(study.below.sum())
    return f" (with {count} values below the limit of quantification, imputed from the model)" if count else ""

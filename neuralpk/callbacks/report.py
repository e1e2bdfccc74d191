"""The report at the end of a training: tables, checks and figures beside the checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console
from rich.table import Table
from rich.text import Text

from neuralpk.atomic_files import replacing
from neuralpk.callbacks.logged_media import log_figures, log_text
from neuralpk.callbacks.tensorboard import fit_figures, in_group, logged_step, parts_of, patient_figures
from neuralpk.cohort import Cohort, FloatArray
from neuralpk.cohort_figures import (
    curve_errors,
    first_seen,
    first_values,
    held_out,
    is_dosed,
    learned_figures,
    quantity_of,
)
from neuralpk.datamodules import CohortDataModule, SimulatedDataModule
from neuralpk.diagnostics.parameter_plots import latent_space
from neuralpk.diagnostics.style import png
from neuralpk.estimation.standard_errors import PopulationEstimate
from neuralpk.evaluation import Evaluation, evaluate
from neuralpk.evaluation.evaluation import PAGE
from neuralpk.individual_estimates import IndividualEstimates
from neuralpk.published_population import PublishedPopulation, write_population
from neuralpk.saved_model import SavedTask
from neuralpk.tables import write_table
from neuralpk.task import LatentTask

_MOST_RSE = 1000  # percent: wider digits would push the names out of the table
_POOR_RSE = 50  # percent
_WITH_INTERVALS = 200  # patients
_PANEL_DRAWS = 100  # with which intervals hold their share
_POPULATION_FIGURES = ("pcvpc", "npde", "random_effects", "covariates")
_EXAMPLE = 20  # subjects of the table with which the printed command runs


def _reference(value: object) -> str:
    """Of a covariate effect, a number or the level of a text; empty for other rows."""
    if isinstance(value, str):
        return value
    return f"{value:.4g}" if isinstance(value, float) and not np.isnan(value) else ""


class Report(L.Callback):
    """Report at the end of a training: the population and its checks (of an objective that maximises the likelihood), a
    table of the errors, figures and tables beside the checkpoints, and the commands that come next. The figures, and
    what was said, also go to the loggers that take them (`neuralpk.callbacks.logged_media`).

    Args:
        subjects: how many panels.
    """

    def __init__(self, subjects: int = 15) -> None:
        if subjects < 1:
            raise ValueError(f"subjects must be 1 or more, got {subjects}")
        self.subjects = subjects
        self.console = Console(highlight=False, soft_wrap=True)
        self._verdict: list[str] = []

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parts = parts_of(trainer, pl_module)
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # all processes together: rank 0 tells it
        if parts is None or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        _end_progress(trainer)
        task, data = parts
        folder.mkdir(parents=True, exist_ok=True)
        self._verdict = []
        figures: dict[str, bytes] = {}
        self._conclude(f"This model was {task.provenance.description}")
        callback = trainer.checkpoint_callback
        last = getattr(callback, "last_model_path", "") or getattr(callback, "best_model_path", "")
        if task.covariance is None:
            self._values(data, task)
        else:
            self._population(data, task, task.covariance, folder)
            figures |= in_group("population", self._checks(data, task, folder))
        self._errors(data, task)
        figures |= in_group("patients", self._figures(data, task, folder))
        self._population_file(task, folder)
        result = self._estimates(data, task, folder)
        figures["patients/latent space"] = png(latent_space(result.z))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                _project(logger, data.part("train"), result)
        log_figures(trainer.loggers, figures, logged_step(trainer))
        log_text(trainer.loggers, "verdict", "\n".join(f"- {line}" for line in self._verdict), logged_step(trainer))
        if last:
            self._next(trainer, data, folder, last)

    def _say(self, text: str) -> None:
        """Print a line as it is: names and paths may hold what rich takes for markup."""
        self.console.print(Text(text))

    def _conclude(self, text: str) -> None:
        """Print a line, and keep it for the verdict: no path and no ID may be in it."""
        self._verdict.append(text)
        self._say(text)

    def _show(self, table: Table) -> None:
        """Print a table, and keep it for the verdict."""
        columns = [list(map(str, column.cells)) for column in table.columns]
        names = [str(column.header) for column in table.columns]
        rows = [names, ["---"] * len(names), *map(list, zip(*columns, strict=True))]
        text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        self._verdict.append(f"{table.title}\n\n{text}\n")
        self.console.print(table)

    def _values(self, data: CohortDataModule, task: LatentTask) -> None:
        """What was learned without standard errors, of simulated subjects beside the truth."""
        values = task.model.reported_values()
        if not values:
            return
        truth = _truth(data)
        shared = {
            one.name: [f"{one.kind} {name}" for name in (one.parameter, *one.sharing)]
            for one in task.model.coordinates()
            if one.sharing
        }
        table = Table(title=f"Population of the {_count(data.part('train'), 'training')}")
        table.add_column("parameter", overflow="fold", min_width=len("parameter"))
        for column in ("estimate", *(["true value"] if truth else [])):
            table.add_column(column, justify="right", no_wrap=True)
        for name, value in values.items():
            # parameters that share an omega may have been simulated with one each
            true = dict.fromkeys(f"{truth[own]:.3g}" for own in shared.get(name, [name]) if own in truth)
            table.add_row(Text(name), f"{value:.3g}", *([", ".join(true)] if truth else []))
        self._show(table)

    def _population(self, data: CohortDataModule, task: LatentTask, estimate: PopulationEstimate, folder: Path) -> None:
        frame = pd.DataFrame(estimate.rows)
        notes = {"TRACK": task.provenance.description}
        if estimate.status is not None:
            notes["STATUS"] = estimate.status.word
        with replacing(folder / "population.csv") as part:
            frame.assign(**notes).to_csv(part, index=False)
        table = Table(
            title=Text(f"Population of the {_count(data.part('train'), 'training')}"),
            caption=Text(task.provenance.description),
        )
        table.add_column("parameter", overflow="fold", min_width=len("parameter"))
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
        self._show(table)
        poor = [row["PARAMETER"] for row in frame.to_dict("records") if row["RSE"] > _POOR_RSE]
        if poor:
            self._conclude(
                f"Not determined by these data (RSE above {_POOR_RSE} %): {', '.join(poor)}. Fix them, give priors, or "
                "take a smaller model"
            )
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
            self._verdict.append(f"Population fit: {replace(estimate.status, subject='').sentence}")

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

    def _checks(self, data: CohortDataModule, task: LatentTask, folder: Path) -> dict[str, bytes]:
        """The model judged on the training subjects, as `neuralpk evaluate` does it: verdict, calibration, and the
        figures of the population."""
        cohort = data.part("train")
        found = evaluate(SavedTask(Path(), task), cohort, draws=0, seed=task.seed)
        self._calibration(found, folder)
        self._conclude(f"Checks on the {_count(cohort, 'training')}: {found.sentence}")
        for remark in found.remarks:
            self._say(f"- {remark}")
        drawn = {name.replace("_", " "): figure for name, figure in found.drawn(_POPULATION_FIGURES, width=PAGE)}
        figures = {name: png(figure) for name, figure in (drawn | learned_figures(task, cohort)).items()}
        _write(figures, folder)
        self._say(f"Figures of the population: {', '.join(map(_file, figures))}, beside it")
        return figures

    def _calibration(self, found: Evaluation, folder: Path) -> None:
        with replacing(folder / "calibration.csv") as part:
            found.calibration.to_csv(part, index=False)
        for one in found.calibration.to_dict("records"):
            endpoint = f", endpoint {one['DVID']}" if len(found.endpoints) > 1 else ""
            self._conclude(
                f"Simulated from the population, {one['observations']} values{endpoint}: {100 * one['cover90']:.0f} % "
                f"within their 90 % intervals, CRPS {one['crps']:.3g} {found.units.value} (absolute error of the "
                f"medians {one['absolute']:.3g}), NPDE mean {one['npde_mean']:+.2f}, sd {one['npde_sd']:.2f}"
            )

    def _errors(self, data: CohortDataModule, task: LatentTask) -> None:
        train, test = data.part("train"), data.part("test")
        new = not set(test.ids) <= set(train.ids)
        for name, cohort in {"training": train, "new": test}.items() if new else [("training", train)]:
            errors = curve_errors(data, task, cohort)
            if errors:
                self._show(_error_table(errors, task, cohort, name))
        if train[0].truth is None:
            self._held_out(data, task)

    def _held_out(self, data: CohortDataModule, task: LatentTask) -> None:
        """Error of the measured values that a test holds back: of subjects left out, or of a forecast."""
        table = held_out(data, task)
        table = table[(table["DV"] > 0) & (table["PRED"] > 0) & (table["IPRED"] > 0)]
        if table.empty:
            return
        by = {name: np.sqrt(np.mean(np.log(table[name] / table["DV"]) ** 2)) for name in ("PRED", "IPRED")}
        self._conclude(
            f"{len(table)} values of {table['ID'].nunique()} test {_noun(data.part('test'))} that no estimate was "
            f"shown, root mean square of log(prediction/observation): PRED {by['PRED']:.3f}, IPRED {by['IPRED']:.3f}"
        )

    def _figures(self, data: CohortDataModule, task: LatentTask, folder: Path) -> dict[str, bytes]:
        """Panels of the validation subjects, of other test subjects whose truth is not known too; goodness of fit."""
        seen = first_seen(data)
        val, test = data.part("val"), data.part("test")
        figures = patient_figures(task, data, task.reconstruct(val[: self.subjects], draws=_PANEL_DRAWS, context=seen))
        fits = fit_figures(task.residuals(val, context=seen), val.units)
        files = {name.replace("individual fits", "individuals"): own for name, own in (figures | fits).items()}
        if test is not val and test[0].truth is None:
            shown = test[: self.subjects].hidden_from(data.forecast) if data.forecast else test[: self.subjects]
            result = task.reconstruct(shown, _span(test[: self.subjects]), draws=_PANEL_DRAWS, context=seen)
            held = patient_figures(task, data, _of(result, test[: self.subjects]))
            files |= {name.replace("individual fits", "individuals test"): own for name, own in held.items()}
            figures |= {f"{name}, test": own for name, own in held.items()}
        _write(files, folder)
        self._say(f"Figures of the {_noun(val)}: {', '.join(str(folder / _file(name)) for name in files)}")
        return figures | fits

    def _estimates(self, data: CohortDataModule, task: LatentTask, folder: Path) -> IndividualEstimates:
        """Tables of the training subjects; of many subjects, and of a network, without intervals, which take long."""
        cohort = data.part("train")
        many = len(cohort) > _WITH_INTERVALS or task.model.has_network
        result = task.reconstruct(cohort, draws=0 if many else 200)
        names = ", ".join(path.name for path in result.write(folder))
        without = ", without intervals (neuralpk estimate computes them)" if many else ""
        self._say(f"Tables of the training {_noun(cohort)} in {folder}: {names}{without}")
        return result

    def _next(self, trainer: L.Trainer, data: CohortDataModule, folder: Path, checkpoint: str) -> None:
        table = folder / "new_subjects.csv"
        write_table(data.part("test")[:_EXAMPLE], table)
        model = shlex.quote(checkpoint)
        code = (
            f"from neuralpk import LatentTask; task = LatentTask.load_from_checkpoint({checkpoint!r}); "
            "print(task.model.reported_values())"
        )
        commands = {
            "load the model in Python": f'python -c "{code}"'
            if not set(code) & set('"$`\\')
            else f"python -c {shlex.quote(code)}",
            f"estimate subjects of a table ({table.name} shows the columns)": (
                f"neuralpk estimate --model {model} --table {shlex.quote(str(table))} "
                f"--out {shlex.quote(str(folder / 'estimates'))}"
            ),
            "write everything about the model and its data as one HTML file": (
                f"neuralpk report --model {model} --table {shlex.quote(str(table))} "
                f"--out {shlex.quote(str(folder / 'report.html'))}"
            ),
        }
        if any(isinstance(logger, TensorBoardLogger) for logger in trainer.loggers):
            commands = {"open the dashboard": f"tensorboard --logdir {shlex.quote(str(folder))}"} | commands
        for what, command in commands.items():
            self._say(f"To {what}:\n  {command}")


def _end_progress(trainer: L.Trainer) -> None:
    """Close the progress bar: one that is still alive goes back over the last lines that are printed below it."""
    bar = trainer.progress_bar_callback
    if isinstance(bar, RichProgressBar) and bar.progress is not None:
        bar.progress.stop()


def _noun(cohort: Cohort) -> str:
    """What the subjects are: patients where there are doses, else series."""
    return "patients" if is_dosed(cohort) else "series"


def _count(cohort: Cohort, kind: str) -> str:
    noun = _noun(cohort).removesuffix("s" if len(cohort) == 1 and is_dosed(cohort) else "\0")
    return f"{len(cohort)} {kind} {noun}"


def _truth(data: CohortDataModule) -> dict[str, float]:
    """The population that simulated subjects come from, by the names of a report; empty of measured ones."""
    if not isinstance(data, SimulatedDataModule):
        return {}
    population, names = data.population, [*data.population.typical]
    factor = population.cholesky()
    spread = factor.norm(dim=1)
    covariance = factor @ factor.mT
    omega = {f"omega {name}": float(sd) for name, sd in zip(names, spread, strict=True)}
    kappa = {f"kappa {name}": population.kappa.get(name, 0.0) for name in names}
    correlation = {
        f"corr {names[i]}~{names[j]}": float(covariance[i, j] / (spread[i] * spread[j]))
        for i, j in permutations(spread.nonzero()[:, 0].tolist(), 2)
    }
    return {**population.typical, **omega, **kappa, **correlation, **data.error_sd}


def _error_table(
    errors: Mapping[str, tuple[FloatArray, FloatArray]], task: LatentTask, cohort: Cohort, kind: str
) -> Table:
    """Of the curves by endpoint; and of the AUC, where there are doses."""
    table = Table(title=f"Error of the curve against the truth, {_count(cohort, kind)}")
    table.add_column("reconstruction by", no_wrap=True)
    endpoints = next(iter(errors.values()))[0].shape[1]
    named = ["curve"] if endpoints == 1 else [quantity_of(cohort, task.model, k).lower() for k in range(endpoints)]
    of_area = ("AUC, rel. RMSE", "AUC, mean error") if is_dosed(cohort) else ()
    for column in (*(f"{name}, rel. RMSE" for name in named), *of_area):
        table.add_column(column, justify="right", no_wrap=True)
    for by, (curve, auc) in errors.items():
        area = (f"{100 * np.sqrt(np.mean(auc**2)):.1f} %", f"{100 * auc.mean():+.1f} %") if of_area else ()
        table.add_row(by, *(f"{value:.3f}" for value in curve.mean(axis=0)), *area)
    return table


def _span(cohort: Cohort) -> Sequence[float]:
    """200 times over all records."""
    every = np.concatenate([subject.times for subject in cohort])
    return np.linspace(every.min(), every.max(), 200).tolist()  # type: ignore[no-any-return]


def _of(result: IndividualEstimates, cohort: Cohort) -> IndividualEstimates:
    """The same estimates beside all records of their subjects, those too that they were not shown."""
    return replace(result, source=replace(result.source, cohort=cohort))


def _file(name: str) -> str:
    return f"{name.replace(' ', '_')}.png"


def _write(figures: Mapping[str, bytes], folder: Path) -> None:
    for name, content in figures.items():
        with replacing(folder / _file(name)) as part:
            part.write_bytes(content)


def _project(logger: TensorBoardLogger, cohort: Cohort, result: IndividualEstimates) -> None:
    """The estimates of z for TensorBoard's projector, which colours them by parameters, covariates and dose."""
    if result.z.shape[1] < 2:  # a plane at least
        return
    columns: dict[str, Iterable[float]] = {"number": range(1, len(cohort) + 1)}
    columns |= {name: value for name, (value, _, _) in result.parameters.items()}
    columns |= {name: first_values(cohort, name) for name in cohort.covariate_names}
    if is_dosed(cohort):
        columns["first dose"] = [subject.doses[0].amount if subject.doses else 0.0 for subject in cohort]
    rows = [[f"{value:.4g}" for value in row] for row in zip(*columns.values(), strict=True)]
    solved = np.flatnonzero(np.isfinite(result.z).all(axis=1))
    metadata = [rows[k] for k in solved]
    logger.experiment.add_embedding(result.z[solved], metadata, tag="latent space", metadata_header=list(columns))

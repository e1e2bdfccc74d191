"""``neuralpk sweep``: trainings with settings that Optuna chooses, each a run like any other."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import ModelCheckpoint

from neuralpk.atomic_files import refuse_unwritable
from neuralpk.callbacks import Report
from neuralpk.cli.argument_tokens import Argument
from neuralpk.cli.csv_files import write_csv
from neuralpk.cli.faults import UsageError, sentence
from neuralpk.cli.merged_configuration import Configuration
from neuralpk.cli.signatures import Option, options_of
from neuralpk.cli.stop_signals import leaving_on_sigterm
from neuralpk.cli.training import default_callbacks
from neuralpk.solve import SolveError

if TYPE_CHECKING:
    import optuna

_TABLE, _STORAGE = "trials.csv", "study.log"
_SETTINGS = "neuralpk"  # attribute of a study
_FAILED = "failed"  # attribute of a trial: why it failed

Fit = Callable[[list[Argument], list[L.Callback]], Any]
"""Trains with some options and callbacks."""


_REASONS = 3  # printed at most
_GIVEN = {"fit", "settings", "presets"}


def options() -> dict[str, Option]:
    """Options of the sweep itself."""
    return {name: option for name, option in options_of(sweep).items() if name not in _GIVEN}


def run(fit: Fit, settings: list[Argument], presets: list[str], configuration: Configuration) -> None:
    """Run the command; arguments as of `sweep`.

    Raises:
        UsageError: an option that is missing or does not fit; an ``--out`` that cannot be written.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(sweep, skip={*_GIVEN})
    try:
        own = parser.instantiate_classes(parser.parse_object(configuration.finish())).as_dict()
        refuse_unwritable(own["out"] / _TABLE)
    except (ValueError, TypeError, OSError) as error:
        raise UsageError(sentence(error)) from error
    with leaving_on_sigterm():
        sweep(fit, settings, presets, **own)


def sweep(
    fit: Fit,
    settings: Sequence[Argument],
    presets: Sequence[str],
    search: str,
    out: Path,
    trials: int = 20,
    monitor: str = "val_loss",
    prune: bool = True,
    storage: str | None = None,
    study: str = "sweep",
    seed: int = 0,
) -> None:
    """Train again and again with settings that Optuna chooses, for the smallest error on the validation subjects. All
    other options are those of fit. The same command goes on where it was stopped, and, started several times at once,
    shares the work.

    Args:
        fit: trains.
        settings: options of fit.
        presets: of fit.
        search: what to choose, an option each: model.learning_rate=1e-3:1e-1:log (a range, on the logarithmic scale),
            data.batch_size=8:64 (whole numbers), model.encoder.hidden=8|16|32 (one of
            these). Several follow each other.
        out: folder of the study: trial_0000, …, each the folder of a run, and trials.csv.
        trials: how many, those that failed, those of other processes and those from before among them.
        monitor: metric of the validation that is to be small.
        prune: end a training that is worse than the middle of the others at its epoch (Optuna's MedianPruner).
        storage: of Optuna, as in sqlite:///study.db or mysql://host/name for many machines; null for a file in --out.
        study: name of the study in the storage.
        seed: of what is chosen, and of everything in the trainings.
    """
    try:
        import optuna
    except ImportError as error:
        raise ImportError("a sweep needs Optuna: pip install 'neuralpk[sweep]'") from error
    space = [_Choice.of(word) for word in search.split()]
    if trials < 1:
        raise UsageError(f"--trials must be 1 or more, not {trials}")
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = optuna.create_study(
        study_name=study,
        storage=storage or _file_storage(out / _STORAGE),
        pruner=optuna.pruners.MedianPruner() if prune else optuna.pruners.NopPruner(),
        load_if_exists=True,
    )
    given = [f"--{one.name} {one.value}" for one in settings]
    own = {"search": search, "monitor": monitor, "options": [*presets, *given, str(seed)]}
    _refuse_other_settings(found, own)
    while len(_ended(found)) < trials:
        trial = found.ask()
        # what is chosen follows from the seed, the number of the trial and those that have ended
        found.sampler = optuna.samplers.TPESampler(seed=seed + trial.number)
        chosen = [Argument(one.option, one.suggested(trial)) for one in space]
        said = ", ".join(f"{one.name} {one.value}" for one in chosen)
        watch = _Watch(trial, monitor)
        print(f"trial {trial.number}: {said}")
        try:
            _train(fit, [*settings, Argument("seed", str(seed)), *chosen], out / _folder(trial.number), watch)
            failed = "" if math.isfinite(watch.best) else f"{monitor} was never a finite number"
        except SolveError as error:
            failed = str(error)
        except BaseException:
            found.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        _refuse_other_settings(found, own)
        found.set_user_attr(_SETTINGS, own)  # a study whose first trial could not be trained is of no settings
        if failed:
            trial.set_user_attr(_FAILED, failed)
            found.tell(trial, state=optuna.trial.TrialState.FAIL)
            print(f"trial {trial.number} failed: {failed}")
            continue
        if watch.pruned:
            found.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            found.tell(trial, watch.best)
        print(f"trial {trial.number}: {monitor} {watch.best:.6g}{' (pruned)' if watch.pruned else ''}")
    _report(found, out, monitor)


@dataclass(frozen=True)
class _Choice:
    """What is chosen: an option, and its range or its values."""

    option: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    values: tuple[str, ...] = ()

    @classmethod
    def of(cls, word: str) -> _Choice:
        option, _, said = word.partition("=")
        option = option.removeprefix("--")
        if option and "|" in said:
            return cls(option, values=tuple(said.split("|")))
        low, _, rest = said.partition(":")
        high, _, scale = rest.partition(":")
        try:
            one = cls(option, float(low), float(high), scale == "log", low.isdigit() and high.isdigit())
        except ValueError:
            one = cls("")
        possible = math.isfinite(one.low) and math.isfinite(one.high) and one.low < one.high
        if not one.option or scale not in ("", "log") or not possible or (one.log and one.low <= 0):
            raise UsageError(
                f"--search {word!r} is not OPTION=LOW:HIGH, OPTION=LOW:HIGH:log with 0 < LOW, or OPTION=A|B|C"
            )
        return one

    def suggested(self, trial: optuna.Trial) -> str:
        """What the study chooses, as it would be typed."""
        if self.values:
            return str(trial.suggest_categorical(self.option, self.values))
        if self.whole:
            return str(trial.suggest_int(self.option, int(self.low), int(self.high), log=self.log))
        return repr(trial.suggest_float(self.option, self.low, self.high, log=self.log))


class _Watch(L.Callback):
    """Tells a trial every value of the validation, and ends the training where the trial is pruned.

    Attributes:
        validated: whether there was a validation.
        best: smallest value so far.
        pruned: whether it was ended.
    """

    def __init__(self, trial: optuna.Trial, monitor: str) -> None:
        self.trial, self.monitor = trial, monitor
        self.validated, self.best, self.pruned = False, math.inf, False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report the value of this epoch."""
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val_")))
            raise UsageError(f"--monitor {self.monitor} is no metric of this training; there are {known}")
        value = float(trainer.callback_metrics[self.monitor])
        self.validated, self.best = True, min(self.best, value)
        self.trial.report(value, trainer.current_epoch)
        if self.trial.should_prune():
            self.pruned = trainer.should_stop = True


def _train(fit: Fit, given: list[Argument], folder: Path, watch: _Watch) -> None:
    """A run with its checkpoints and curves; the figures of its end are for `neuralpk report` of the best."""
    callbacks = [one for one in default_callbacks() if not isinstance(one, Report | ModelCheckpoint)]
    best = ModelCheckpoint(monitor=watch.monitor, filename="best")
    fit([*given, Argument("out", str(folder))], [*callbacks, best, watch])
    if not watch.validated:
        raise UsageError("no validation: the training ended before the first one (trainer.check_val_every_n_epoch)")


def _folder(number: int) -> str:
    return f"trial_{number:04d}"


def _file_storage(path: Path) -> Any:
    """A file that several processes, and machines with one file system, may write to."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def _ended(study: optuna.Study) -> list[Any]:
    """Trials that were trained to their end, or pruned, or failed by themselves; not those that somebody stopped."""
    every = study.get_trials(deepcopy=False)
    return [one for one in every if one.state.name in ("COMPLETE", "PRUNED") or _FAILED in one.user_attrs]


def _refuse_other_settings(study: optuna.Study, settings: dict[str, Any]) -> None:
    """Refuse to go on with a study of other settings: its trials could not be compared.

    Raises:
        UsageError: which differ.
    """
    there = study.user_attrs.get(_SETTINGS, settings)
    differ = [name for name in settings if there.get(name) != settings[name]]
    if differ:
        raise UsageError(
            f"study {study.study_name!r} was begun with other {' and '.join(differ)}, and its trials could not be "
            "compared with these: give another --out or --study"
        )


def _report(study: optuna.Study, out: Path, monitor: str) -> None:
    with warnings.catch_warnings(action="ignore"):  # of pandas, about empty columns
        table = study.trials_dataframe(attrs=("number", "state", "value", "duration", "params"))
    every = study.get_trials(deepcopy=False)
    table[_FAILED] = [one.user_attrs.get(_FAILED, "") for one in every]
    write_csv(table, out / _TABLE)
    failed = Counter(table[_FAILED][table[_FAILED] != ""])
    reasons = "; ".join(f"{count} × {why}" for why, count in failed.most_common(_REASONS))
    said = f"{failed.total()} of {len(every)} trials failed: {reasons}" if failed else ""
    if not any(one.state.name == "COMPLETE" for one in every):
        raise ValueError(f"no trial has ended{f', {said}' if said else ''}; see {out / _TABLE}")
    if said:
        print(f"{said}; see {out / _TABLE}")
    best = study.best_trial
    chosen = ", ".join(f"{name} {value}" for name, value in best.params.items())
    print(f"best of {len(study.trials)} trials, {monitor} {best.value:.6g}: {chosen}")
    print(f"{out / _folder(best.number) / 'checkpoints' / 'best.ckpt'}, {out / _TABLE}")

"""``write_report(model, table, out)``: one HTML file with everything about a model and its data."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import shlex
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

import neuralpk
from neuralpk.atomic_files import replacing
from neuralpk.dynamics.equation_text import EquationReader, tokens_of_line
from neuralpk.dynamics.expression import Expression
from neuralpk.evaluation import Evaluation, evaluate
from neuralpk.fitting import FittedModel
from neuralpk.parameters import RESIDUAL
from neuralpk.population_model import PopulationModel
from neuralpk.report.data_section import data_section
from neuralpk.report.diagnostics_section import diagnostic_figures
from neuralpk.report.dynamics_equations import EquationBlock, dynamics_equations
from neuralpk.report.encoder_section import encoder_section
from neuralpk.report.individual_section import individual_section
from neuralpk.report.learned_section import learned_section, network_names
from neuralpk.report.population_equations import error_equations, population_equations
from neuralpk.report.reproduction import inputs_table, settings_text, versions_table
from neuralpk.report.tables_and_figures import ReportTable, cell, csv_text, digits
from neuralpk.saved_model import SavedModel, SavedTask, read_model
from neuralpk.table_check import check_table
from neuralpk.tables import DataError

Progress = Callable[[str, Sequence[Any]], Iterable[Any]]
"""Wraps the parts of a step of the work, with its name."""

_SECTIONS = {
    "verdict": "Verdict",
    "data": "Data",
    "model": "Model",
    "population": "Population parameters",
    "diagnostics": "Diagnostics",
    "individuals": "Individuals",
    "learned": "What was learned",
    "encoder": "What the encoder contributed",
    "reproduction": "Reproduction",
}
_PARAMETER_COLUMNS = ("parameter", "estimate", "reference", "RSE", "95 % interval", "ω", "CV", "shrinkage")
_METHODS = {"profile": "profile likelihood", "wald": "Wald"}
_LARGEST_RSE = 1000.0  # percent
_ERROR_COLUMNS = {
    "PREDICTION": "prediction", "DVID": "DVID", "N": "values", "BIAS": "bias", "RMSE": "RMSE",
    "BIAS_PERCENT": "bias, %", "RMSE_PERCENT": "RMSE, %",
}  # fmt: skip
_CHECK_COLUMNS = {
    "CHECK": "check", "MEANING": "statistic", "DVID": "DVID", "STATISTIC": "value", "LIMIT": "limit",
    "P_ADJUSTED": "adjusted p", "PASSED": "passed",
}  # fmt: skip


def write_report(
    model: SavedModel | FittedModel | str | Path,
    table: pd.DataFrame | str | Path,
    out: str | Path,
    *,
    title: str = "",
    anonymise: bool = False,
    simulations: int = 500,
    draws: int | None = None,
    map_estimate: bool | None = None,
    seed: int = 0,
    formulas: Mapping[str, str] | None = None,
    command: str = "",
    progress: Progress | None = None,
    **reading: Any,
) -> Evaluation:
    """Write one HTML file with everything about a model and its data, which needs nothing from elsewhere.

    Args:
        model: a checkpoint of a training or a population file, by its path or read by `neuralpk.read_model`; or a model
            from `neuralpk.fit`.
        table: an event table, or its path.
        out: the HTML file.
        title: of the report.
        anonymise: name patients by their order in the table, and leave out names of files, the date, and comments in
            texts of equations.
        simulations: number of simulated studies for the checks, as of `neuralpk.evaluate`.
        draws: of each patient for the 90 % intervals, likewise.
        map_estimate: whether the most probable parameters are searched, likewise.
        seed: of all that is drawn.
        formulas: expressions by the name of the network that each stands for, as of ``Equations``.
        command: by which the report is made, as it is to stand there; empty for the call of this function.
        progress: shows how far a step of the work is.
        reading: further arguments of `neuralpk.tables.read_table`.

    Returns:
        The evaluation that the report shows.

    Raises:
        neuralpk.tables.DataError: the table breaks a rule.
        ValueError: a formula of a network that the model does not have; as `neuralpk.evaluate`.
        neuralpk.solve.SolveError: no patient could be solved.
    """
    saved = model if isinstance(model, SavedModel) else _read(model)
    expressions = _read_formulas(saved, formulas or {})
    check = check_table(table, anonymous=anonymise, **saved.reading(**reading))
    if check.faults:
        raise DataError(check.faults)
    cohort = check.cohort
    assert cohort is not None
    shown: Progress = progress or (lambda _, parts: parts)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        evaluation = evaluate(
            saved,
            cohort,
            simulations=simulations,
            draws=draws,
            likelihood=True,
            map_estimate=map_estimate,
            seed=seed,
            progress=shown,
        )
        population = saved.population_model(cohort)
    for warning in {str(one.message): one for one in caught}.values():
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    data: dict[str, pd.DataFrame] = {}
    if anonymise:
        check = dataclasses.replace(check, notes=_without_ids(check.notes))
    files = {
        "model": [] if _path_of(model) is None else saved.files,
        "table": [path for path in [_path_of(table)] if path is not None],
    }
    page = {
        **_head(title, saved, evaluation, population, anonymise),
        "remarks": [_sentence(remark) for remark in dict.fromkeys((*evaluation.remarks, *_said(caught)))],
        "data": data_section(check, data),
        "model": _model(saved, population, anonymise),
        "population": _population(saved, evaluation, anonymise, data),
        "diagnostics": _diagnostics(evaluation, shown, data),
        "individuals": individual_section(evaluation, cohort, data),
        "learned": None,
        "encoder": None,
        "reproduction": {
            "command": command or _call(model, table, out, anonymise),
            "tables": [
                inputs_table(files, anonymise),
                versions_table(),
                _choices(evaluation),
            ],
        },
    }
    if isinstance(saved, SavedTask):
        task = saved.task()
        page["learned"] = learned_section(task, cohort, expressions, data)
        if task.encoder is not None:
            page["encoder"] = encoder_section(task, evaluation, cohort, data)
    page["sections"] = [{"name": name, "title": word} for name, word in _SECTIONS.items() if page.get(name)]
    page["frames"] = {name: csv_text(frame) for name, frame in data.items()}
    page["date"] = "" if anonymise else datetime.date.today().isoformat()
    with replacing(Path(out)) as part:
        part.write_text(_rendered(page), encoding="utf-8")
    return evaluation


def _rendered(page: Mapping[str, Any]) -> str:
    folder = resources.files("neuralpk.report")
    style, script, template = ((folder / f"report.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made = pages.from_string(template)
    return made.render(page, style=Markup(style), script=Markup(script), version=neuralpk.__version__)


def _read(model: FittedModel | str | Path) -> SavedModel:
    return SavedTask(Path(), model.task) if isinstance(model, FittedModel) else read_model(model)


def _read_formulas(saved: SavedModel, formulas: Mapping[str, str]) -> dict[str, Expression]:
    """Expressions that stand for networks.

    Raises:
        ValueError: a network that the model does not have; a text that is no expression.
    """
    known = network_names(saved.task().model.dynamics) if isinstance(saved, SavedTask) else []
    for name in formulas:
        if name not in known:
            raise ValueError(
                f"formulas: there is no network {name!r} in the model; it has {', '.join(known) or 'none'}"
            )
    found = {}
    for name, text in formulas.items():
        reader = EquationReader(tokens_of_line(text, 1))
        found[name] = reader.expression()
        reader.end()
    return found


def _path_of(given: object) -> Path | None:
    if isinstance(given, SavedModel):
        return given.path
    return Path(given) if isinstance(given, str | Path) else None


def _call(model: object, table: object, out: str | Path, anonymise: bool) -> str:
    """The call in Python."""
    names = [_path_of(model) or "model", _path_of(table) or "table", Path(out)]
    said = ["FILE", "T.csv", "report.html"] if anonymise else [str(name) for name in names]
    return f"neuralpk.write_report({', '.join(map(repr, said))}{', anonymise=True' if anonymise else ''})"


def command_line(
    model: Path, table: Path, out: Path, options: Mapping[str, Any], reading: Mapping[str, Any], anonymise: bool
) -> str:
    """The command that makes a report, with its options that are not the default.

    Args:
        model: its file.
        table: its file.
        out: the report.
        options: further options with their values.
        reading: how the table is read, likewise.
        anonymise: leave out the names of the files, and the values of `reading`, which may name patients.
    """
    files = ["FILE", "T.csv", "report.html"] if anonymise else [str(model), str(table), str(out)]
    words = ["neuralpk", "report"]
    for name, file in zip(("model", "table", "out"), files, strict=True):
        words += [f"--{name}", file]
    for name, value in {**options, **(dict.fromkeys(reading, "…") if anonymise else reading)}.items():
        words += [f"--{name}"] if value is True else [f"--{name}", _word(value)]
    return shlex.join(words)


def _word(value: Any) -> str:
    """A value as the command line takes it."""
    return value if isinstance(value, str) else json.dumps(value)


def _without_ids(notes: Sequence[str]) -> list[str]:
    """Notes on how a table was read without those that may name a patient."""
    kept = [note for note in notes if not re.search(r": (ID|map: column ID)\b", note)]
    return [re.sub(r"""(ignore )('[^']*'|"[^"]*")""", r"\1…", note) for note in kept]


def _sentence(text: str) -> str:
    """A sentence with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _said(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    """What was warned of by this package, each once."""
    ours = [str(one.message) for one in caught if one.category is UserWarning]
    return list(dict.fromkeys(ours))


# ---- sections


def _head(
    title: str, saved: SavedModel, evaluation: Evaluation, model: PopulationModel, anonymise: bool
) -> dict[str, Any]:
    verdict, records = evaluation.verdict, evaluation.records
    state = {True: "good", False: "bad", None: "open"}[verdict["adequate"]]
    lines = []
    status = _status(saved, anonymise)
    if status:
        lines.append(f"{status}.")
    if len(evaluation.unseen_covariates):
        patients, names = evaluation.unseen_covariates["ID"].nunique(), verdict["unseen_covariates"]
        lines.append(f"{patients} patients have {', '.join(names)} outside the range that the model has learned from.")
    facts = [
        ("patients", f"{len(evaluation.individuals):,}"),
        ("measured values", f"{len(records):,}"),
        ("below the limit", _share_below(records)),
    ]
    for row in evaluation.errors.to_dict("records"):
        word = "population" if row["PREDICTION"] == "PRED" else "individual"
        of = f", DVID {row['DVID']}" if len(evaluation.endpoints) > 1 else ""
        facts.append((f"RMSE, {word} prediction{of}", f"{digits(row['RMSE_PERCENT'], 3)} %"))
    if evaluation.likelihood:
        facts.append(("−2 log-likelihood", digits(evaluation.likelihood["OBJECTIVE"], 5)))
        if not model.has_network:  # a prior holds the weights of a network: not a number of parameters to compare by
            facts += [(name, digits(evaluation.likelihood[name], 5)) for name in ("AIC", "BIC")]
    checks = ReportTable.of(evaluation.checks, "Checks", _CHECK_COLUMNS, texts=2) if len(evaluation.checks) else None
    return {
        "title": title or "Population model",
        "subtitle": _description(saved, anonymise),
        "verdict": {
            "state": state,
            "sentence": evaluation.sentence,
            "lines": lines,
            "rule": _sentence(verdict["rule"]),
        },
        "facts": facts,
        "checks": checks,
    }


def _share_below(records: pd.DataFrame) -> str:
    below = float((records["CENS"] > 0).mean()) if "CENS" in records and len(records) else 0.0
    return f"{100 * below:.1f} %"


def _description(saved: SavedModel, anonymise: bool) -> str:
    """What the model is."""
    if isinstance(saved, SavedTask):
        return f"{saved.description}."
    return "The model is a published population." if anonymise else f"The model is the population of {saved.path.name}."


def _status(saved: SavedModel, anonymise: bool) -> str:
    """How the population fit ended; a patient of the training is not named where the report is anonymous."""
    if anonymise and isinstance(saved, SavedTask) and saved.task().status is not None:
        status = saved.task().status
        assert status is not None
        return f"Population fit: {dataclasses.replace(status, subject='not named').sentence}"
    return saved.status


def _model(saved: SavedModel, model: PopulationModel, anonymise: bool) -> dict[str, Any]:
    dynamics = model.dynamics
    endpoints = len(model.error.outputs) or len(dynamics.endpoints)
    factor = RESIDUAL if RESIDUAL in model.population.names else ""
    blocks: list[EquationBlock] = [*dynamics_equations(dynamics), population_equations(model.population)]
    blocks.append(error_equations(model.error, [f"DVID {k}" for k in range(1, endpoints + 1)], factor))
    units = saved.units
    sentence = f"Time in {units.time}, amounts in {units.amount}, values in {units.value}."
    settings = dict(saved.task().hparams) if isinstance(saved, SavedTask) else saved.published().to_plain()
    return {"sentence": sentence, "blocks": blocks, "settings": settings_text(settings, anonymise)}


def _population(
    saved: SavedModel, evaluation: Evaluation, anonymise: bool, data: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    data["parameters"] = evaluation.parameters
    frame, fixed = evaluation.parameters, evaluation.parameters["RSE"].isna()
    kinds = frame.loc[~fixed].groupby("INTERVAL")["PARAMETER"].agg(", ".join)
    methods = [f"{_METHODS[str(kind)]} ({names})" for kind, names in kinds.items() if kind]
    note = "ω: standard deviation of the random effect; CV: variability of a log-normal parameter. "
    note += f"Intervals: {', '.join(methods)}. " if methods else ""
    note += "A dash under RSE: fixed, or not known from the file." if fixed.any() else ""
    rows = [_parameter(row) for row in frame.to_dict("records")]
    table = ReportTable("Parameters of the population", _PARAMETER_COLUMNS, rows, note=note, data="parameters")
    status = _status(saved, anonymise)
    return {"status": f"{status}." if status else "", "tables": [table]}


def _parameter(row: Mapping[Any, Any]) -> list[str]:
    """Cells of a number of the population."""

    def percent(name: str) -> str:
        value = float(row.get(name, np.nan))
        return "–" if np.isnan(value) else f"> {_LARGEST_RSE:g} %" if value > _LARGEST_RSE else f"{digits(value, 3)} %"

    between = "–" if np.isnan(row["RSE"]) else f"{digits(row['LO95'], 3)} to {digits(row['HI95'], 3)}"
    varied = [cell(row.get("OMEGA")), percent("CV"), percent("SHRINKAGE")]
    return [row["PARAMETER"], cell(row["ESTIMATE"]), cell(row.get("REFERENCE")), percent("RSE"), between, *varied]


def _diagnostics(evaluation: Evaluation, shown: Progress, data: dict[str, pd.DataFrame]) -> dict[str, Any]:
    data["errors"] = evaluation.errors
    errors = ReportTable.of(evaluation.errors, "Errors of the predictions", _ERROR_COLUMNS, data="errors")
    return {"tables": [errors], "figures": diagnostic_figures(evaluation, data, shown)}


def _choices(evaluation: Evaluation) -> ReportTable:
    """What the numbers of the report depend on beside its inputs."""
    rows = [(name, str(evaluation.settings[name])) for name in ("simulations", "seed")]
    return ReportTable("Settings of the report", ("setting", "value"), rows, texts=2)

"""``evaluate(model, table)``: a model judged on a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import neuralpk
from neuralpk import randomness
from neuralpk.cohort import Cohort, FloatArray, written_out
from neuralpk.diagnostics.below_quantification import quantification_limits
from neuralpk.diagnostics.metrics import shrinkage
from neuralpk.estimation.exact_likelihood import log_likelihood
from neuralpk.estimation.standard_errors import parameter_rows
from neuralpk.evaluation.checks import Check, judge, npde_checks, trend_check
from neuralpk.evaluation.conditional_residuals import conditional_residuals
from neuralpk.evaluation.evaluation import Evaluation, study_bins
from neuralpk.evaluation.predictive_check import corrected, outside, percentiles, shares_below
from neuralpk.evaluation.simulated_study import IntArray, SimulatedStudy
from neuralpk.individual_estimates import IndividualEstimates
from neuralpk.randomness import Stream
from neuralpk.record_predictions import doses_before, replicates
from neuralpk.saved_model import SavedModel, SavedPopulation, SavedTask, read_model
from neuralpk.tables import ParquetParts, is_parquet

_WITH_INTERVALS = 200  # patients: of more, and of a network, curves have no intervals unless they are asked for
_DRAWS = 200
_FAILED = 0.1  # of the simulated patients in the place of one: of more, its values are left out
_ROUNDING = 1e-6  # of a covariate's range
_MOST_SIMULATED = 250_000_000  # values: 2 GB, of which a few copies are held

if TYPE_CHECKING:  # Lightning, for which a population file does not wait
    from neuralpk.fitting import FittedModel

Progress = Callable[[str, Sequence[Tensor]], Iterable[Tensor]]
"""Wraps the parts of a step of the work, with its name."""


def evaluate(
    model: SavedModel | FittedModel | str | Path,
    table: pd.DataFrame | Cohort | str | Path,
    *,
    simulations: int = 500,
    strata: Sequence[str] = (),
    patients: int | None = None,
    draws: int | None = None,
    likelihood: bool = False,
    map_estimate: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    **reading: Any,
) -> Evaluation:
    """Judge a model on a table: residuals, random effects, visual predictive checks, a verdict.

    Args:
        model: a checkpoint of a training or a population file, by its path or read by `neuralpk.read_model`; or a model
            from `neuralpk.fit`.
        table: an event table, its path, or a cohort.
        simulations: number of simulated studies of the same design, 100 or more.
        strata: columns of the table, numbers or texts, beside the covariates of the model, such as an arm.
        patients: judge on so many patients, drawn at random; a Parquet file may then be of any length. None for all.
        draws: of each patient for the 90 % intervals of the curves; None for 200 for up to 200 patients of a model
            without a network in its dynamics, and otherwise none.
        likelihood: whether log p(data), AIC and BIC are computed.
        map_estimate: whether the most probable parameters are searched; None for what the model was trained with.
        seed: of all that is drawn.
        progress: shows how far a step of the work is.
        reading: further arguments of `neuralpk.tables.read_table`.

    Raises:
        neuralpk.tables.DataError: the table breaks a rule.
        ValueError: fewer than 100 simulations; no patients; more simulated values than are held at once; a column that
            the table lacks; an endpoint that the model does not have.
        neuralpk.solve.SolveError: no patient could be solved.
    """
    if simulations < 100:
        raise ValueError(f"{simulations} simulated studies are too few to judge by: give 100 or more")
    saved = _saved(model)
    if patients is not None and patients < 1:
        raise ValueError(f"patients must be 1 or more, not {patients}")
    cohort, of = _read(saved, table, strata, patients, seed, reading)
    _refuse_too_many(cohort, simulations)
    labels = {name: _labels(cohort, name) for name in strata}
    shown: Progress = progress or (lambda _, parts: parts)
    count = _intervals(saved, cohort) if draws is None else draws
    estimates = saved.estimate(
        cohort, draws=count, map=map_estimate, seed=seed, progress=lambda parts: shown("estimate", parts)
    )
    source = estimates.source
    population, batch = source.model, source.batch
    remarks = [f"{len(cohort)} of {of} patients, drawn at random"] if len(cohort) < of else []
    remarks += estimates.unsolved
    if draws is None and count == 0:
        remarks.append("the curves of the patients have no intervals, which take long: ask for draws")
    records = _records(estimates, labels, remarks)
    study = None
    if not source.has_error:
        remarks.append(
            "the model was trained without a likelihood and has no residual error: no simulated studies, no weighted "
            "residuals, no verdict"
        )
    elif not len(records):
        remarks.append("no measured value: nothing to judge by")
    else:
        simulated = replicates(population, batch, simulations, seed, lambda parts: shown("simulate", parts))
        remarks += _replace_failed(simulated, records)
        study = SimulatedStudy.of(records, simulated, quantification_limits(source.cohort), seed)
        records.loc[study.rows, "NPDE"] = study.npde[0]
        remarks += _remarks_of(study, records)
        study = study if len(study.rows) else None
    checks = [] if study is None else _checks(study, records)
    npde = [check for check in checks if check.name in ("npde mean", "npde variance", "npde normality")]
    effects, shrunk = _random_effects(estimates, labels)
    if population.latent_size > len(population.population.varying):
        remarks.append("latent dimensions of the model are no random effects: they are not in the tables of those")
    parameters = pd.DataFrame(parameter_rows(population, estimates_or_zero(source.z), batch))
    return Evaluation(
        records=records,
        parameters=parameters,
        random_effects=effects,
        shrinkage=shrunk,
        errors=_errors(records),
        individuals=estimates.individuals(),
        occasions=estimates.occasions(),
        curves=_curves(estimates),
        doses=_doses(cohort),
        checks=judge(checks),
        npde_p=float(judge(npde)["P_ADJUSTED"].min()) if npde else float("nan"),
        unseen_covariates=_unseen(saved, source.cohort, remarks),
        likelihood=_likelihood(saved, estimates, seed, remarks) if likelihood else {},
        remarks=tuple(remarks),
        unsolved=estimates.unsolved,
        description=saved.description,
        status=saved.status,
        units=saved.units,
        settings={
            "model": str(model) if isinstance(model, str | Path) else str(getattr(saved, "path", "")),
            "table": str(table) if isinstance(table, str | Path) else "",
            "patients": len(cohort),
            "simulations": simulations,
            "seed": seed,
            "version": neuralpk.__version__,
        },
        study=study,
    )


def estimates_or_zero(z: Tensor) -> Tensor:
    """z with that of the typical patient for a patient who could not be solved."""
    return torch.where(z.isnan().any(1, keepdim=True), 0.0, z)


def _saved(model: SavedModel | FittedModel | str | Path) -> SavedModel:
    if isinstance(model, str | Path):
        return read_model(model)
    return model if isinstance(model, SavedModel) else SavedTask(Path(), model.task)


def _read(
    saved: SavedModel,
    table: Any,
    strata: Sequence[str],
    patients: int | None,
    seed: int,
    reading: Mapping[str, Any],
) -> tuple[Cohort, int]:
    """The patients that are judged on, and how many the table has."""
    given = dict(reading)
    named = given.get("covariates")
    if named and named != "all" and strata:
        words = [part.strip() for part in named.split(",")] if isinstance(named, str) else list(named)
        given["covariates"] = sorted({*words, *strata})
    if patients is not None and isinstance(table, str | Path) and is_parquet(table):
        parts = ParquetParts(table, 1000, saved.reading(strata=strata, **given))
        chosen = _drawn(patients, parts.subjects, seed)
        return saved.read_table(parts.sample(chosen), strata=strata, **given), parts.subjects
    cohort = table if isinstance(table, Cohort) else saved.read_table(table, strata=strata, **given)
    if patients is None or patients >= len(cohort):
        return cohort, len(cohort)
    return cohort[_drawn(patients, len(cohort), seed).tolist()], len(cohort)


def _refuse_too_many(cohort: Cohort, simulations: int) -> None:
    """Refuse simulated studies that the memory would not hold, before the work.

    Raises:
        ValueError: so many values.
    """
    values = simulations * sum(len(subject.times) for subject in cohort)
    if values > _MOST_SIMULATED:
        raise ValueError(
            f"{simulations} simulated studies of {len(cohort)} patients are {values:,} values, and at most "
            f"{_MOST_SIMULATED:,} are held: judge on patients drawn at random (--patients 1000), or simulate fewer "
            "studies"
        )


def _drawn(count: int, of: int, seed: int) -> IntArray:
    """Numbers of patients drawn without replacement, in the order of the table."""
    u = randomness.uniform(seed, Stream.EVALUATED.at(0), torch.tensor([0]), of)[0]
    return np.sort(u.argsort()[:count].numpy())


def _labels(cohort: Cohort, name: str) -> list[Any]:
    """A column at the first record of every patient: a number, or the text of ``NAME=LEVEL``; NaN or None where there
    is none.

    Raises:
        ValueError: no such column.
    """
    known = cohort.covariate_names
    levels = [one for one in known if one.startswith(f"{name}=")]
    if name in known:
        return [_first(subject.covariates[name]) for subject in cohort]
    if not levels:
        raise ValueError(
            f"there is no column {name!r} to stratify by; covariates read are {', '.join(known) or 'none'}"
        )
    return [
        next((one.partition("=")[2] for one in levels if _first(subject.covariates[one]) == 1.0), None)
        for subject in cohort
    ]


def _first(value: Any) -> float:
    return float(value[0][1]) if isinstance(value, tuple) else float(value)


def _intervals(saved: SavedModel, cohort: Cohort) -> int:
    network = saved.population_model(cohort).has_network
    return 0 if network or len(cohort) > _WITH_INTERVALS else _DRAWS


def _records(estimates: IndividualEstimates, labels: Mapping[str, Sequence[Any]], remarks: list[str]) -> pd.DataFrame:
    """The records with every residual but the NPDE, which need simulations."""
    source = estimates.source
    model, batch, solved = source.model, source.batch, ~source.z.isnan().any(1)
    every = estimates.records()
    measured = every["DV"].notna().to_numpy()
    table = every[measured].reset_index(drop=True)
    values = {"DOSES": doses_before(batch)[batch.mask].cpu().numpy()[measured]}
    residuals = {"WRES": torch.full_like(batch.time, torch.nan), "CWRES": torch.full_like(batch.time, torch.nan)}
    if source.has_error and model.has_likelihood:
        z = estimates_or_zero(source.z)
        residuals["WRES"] = conditional_residuals(model, batch, torch.zeros_like(z))
        residuals["CWRES"] = conditional_residuals(model, batch, z).masked_fill(~solved[:, None], torch.nan)
    elif source.has_error:
        remarks.append("the dynamics has noise: no WRES and CWRES, which need the likelihood given the parameters")
    values |= {name: one[batch.mask].cpu().double().numpy()[measured] for name, one in residuals.items()}
    censored = table["CENS"].to_numpy() != 0 if "CENS" in table else np.zeros(len(table), bool)
    res = np.where(censored, np.nan, table["DV"] - table["PRED"])
    head = ["ID", "TIME", "DVID", "DV", "PRED", "IPRED"]
    first = table[head].assign(RES=res)
    middle = table[["IRES", "IWRES"]].assign(WRES=values["WRES"], CWRES=values["CWRES"], NPDE=np.nan)
    rest = table.drop(columns=[*head, "IRES", "IWRES", "TAD"])
    own = dict(zip(source.cohort.ids, range(len(source.cohort)), strict=True))
    place = [own[name] for name in table["ID"]]
    strata = pd.DataFrame({name: [one[k] for k in place] for name, one in labels.items() if name not in rest})
    dosed = table[["TAD"]].assign(DOSES=values["DOSES"])
    return pd.concat([first, middle, dosed, rest, strata], axis=1)


def _replace_failed(simulated: FloatArray, records: pd.DataFrame) -> list[str]:
    """Put the next study in the place of a simulated patient who could not be solved, and say so; of a patient with
    many of them nothing is replaced.

    Args:
        simulated: is written, ``[study, record]``.
        records: of the patients, with ID and PRED.
    """
    said = []
    solvable = records["PRED"].notna().to_numpy()
    for name, every in records.groupby("ID", sort=False).indices.items():
        own = np.asarray(every, np.int64)
        places = own[solvable[own]]
        failed = ~np.isfinite(simulated[:, places]).all(axis=1)
        count, solved = int(failed.sum()), np.flatnonzero(~failed)
        if not count:
            continue
        words = f"subject {name}: {count} of {len(simulated)} simulated patients could not be solved"
        if count <= _FAILED * len(simulated):
            after = solved[np.searchsorted(solved, np.flatnonzero(failed)) % len(solved)]
            simulated[np.ix_(failed, places)] = simulated[np.ix_(after, places)]
            words += "; others stand in their place"
        said.append(words)
    return said


def _remarks_of(study: SimulatedStudy, records: pd.DataFrame) -> list[str]:
    said = []
    left = len(records) - len(study.rows)
    if left:
        said.append(
            f"{left} of {len(records)} values are left out of what rests on simulation: predicted to be 0, as before "
            "the first dose, above an upper limit, or of a patient, or a simulated one, who could not be solved"
        )
    if study.below[0].any():
        said.append(
            f"the NPDE of {int(study.below[0].sum())} values below the limit of quantification are of values imputed "
            "from the model"
        )
    if study.not_decorrelated:
        names = ", ".join(study.not_decorrelated[:10])
        said.append(f"the NPDE of subject {names} are not decorrelated: too many values for so few simulated studies")
    return said


def _checks(study: SimulatedStudy, records: pd.DataFrame) -> list[Check]:
    """Of every endpoint."""
    found = []
    table = records.iloc[study.rows]
    axes = ["TIME"] + (["TAD"] if int(table["DOSES"].max()) > 1 else [])
    for endpoint in sorted(table["DVID"].unique()):
        own = (table["DVID"] == endpoint).to_numpy()
        part, rows = study.select(own), table[own]
        found += npde_checks(part.npde, int(endpoint))
        for axis in [*axes, "PRED"]:
            known = rows[axis].notna().to_numpy()
            if known.any():
                bins = study_bins(rows[known], axis)
                found += trend_check(part.npde[:, known], bins, axis, int(endpoint))
        found += _predictive(part, rows, int(endpoint))
    return found


def _predictive(study: SimulatedStudy, rows: pd.DataFrame, endpoint: int) -> list[Check]:
    """Percentiles outside their bands in a prediction-corrected check, and shares below the limit of quantification."""
    found, bins = [], study_bins(rows, "TIME")
    positive = (rows["PRED"] > 0).to_numpy()
    if positive.any():
        part, own = study.select(positive), rows[positive]
        along = study_bins(own, "TIME")
        values = corrected(part.values, own["PRED"].to_numpy(float), along)
        share = outside(percentiles(values, part.below, along))
        words = "share of the percentiles of a prediction-corrected VPC outside their 90 % bands"
        found.append(Check("vpc", endpoint, words, share))
    if study.below[0].any():
        shares = shares_below(study.below, bins)
        sd = shares.std(axis=0)
        away = np.square((shares - shares.mean(axis=0)) / np.where(sd > 0, sd, 1.0)).sum(axis=1)
        words = "sum over bins of TIME of the squared distance of the share below the limit from its mean"
        found.append(Check("share below LLOQ", endpoint, words, away))
    return found


def _random_effects(
    estimates: IndividualEstimates, labels: Mapping[str, Sequence[Any]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    source = estimates.source
    population = source.model.population
    names = list(population.varying)
    frame: dict[str, Any] = {"ID": np.asarray(estimates.ids)}
    frame |= {f"ETA_{name}": estimates.parameters[f"ETA_{name}"][0] for name in names}
    assert source.model.scaling is not None
    covariates = sorted({*source.model.scaling.covariates} & {*source.cohort.covariate_names})
    frame |= {name: [_first(subject.covariates[name]) for subject in source.cohort] for name in covariates}
    frame |= {name: list(one) for name, one in labels.items()}
    effects = pd.DataFrame(frame)
    columns = ["PARAMETER", "OMEGA", "SD", "SHRINKAGE"]
    if not names:
        return effects, pd.DataFrame(columns=columns)
    eta = effects[[f"ETA_{name}" for name in names]].dropna().to_numpy(float)
    omega = population.log_omega_by_parameter().detach().exp().cpu().double().numpy()
    sd = eta.std(axis=0, ddof=1) if len(eta) > 1 else np.full(len(names), np.nan)
    shrunk = 100 * shrinkage(eta, omega) if len(eta) > 1 else sd
    return effects, pd.DataFrame(zip(names, omega, sd, shrunk, strict=True), columns=columns)


def _errors(records: pd.DataFrame) -> pd.DataFrame:
    """Bias and root mean square error by endpoint and prediction, of values that are not censored."""
    rows = []
    for endpoint, own in records[records["RES"].notna()].groupby("DVID"):
        for name in ("PRED", "IPRED"):
            known = own[own[name].notna()]
            error, dv = (known[name] - known["DV"]).to_numpy(float), known["DV"].to_numpy(float)
            relative = 100 * error[dv > 0] / dv[dv > 0]
            sizes = [_mean(error), _root_mean_square(error), _mean(relative), _root_mean_square(relative)]
            rows.append((endpoint, name, len(known), *sizes))
    return pd.DataFrame(rows, columns=["DVID", "PREDICTION", "N", "BIAS", "RMSE", "BIAS_PERCENT", "RMSE_PERCENT"])


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _root_mean_square(values: FloatArray) -> float:
    return float(np.sqrt(_mean(np.square(values))))


def _curves(estimates: IndividualEstimates) -> pd.DataFrame:
    frame = estimates.curves()
    return frame if "DVID" in frame else frame.assign(DVID=1)


def _doses(cohort: Cohort) -> pd.DataFrame:
    rows = [
        (subject.id, dose.time, dose.amount)
        for subject in cohort
        for dose in written_out(subject.doses)
        if dose.amount > 0 or dose.rate > 0
    ]
    return pd.DataFrame(rows, columns=["ID", "TIME", "AMT"])


def _unseen(saved: SavedModel, cohort: Cohort, remarks: list[str]) -> pd.DataFrame:
    """Patients with a covariate outside the range of the data that the model has learned from."""
    rows, unknown = [], []
    scaling = saved.task().model.scaling if isinstance(saved, SavedTask) else None
    for name in sorted({*saved.covariates, *saved.needed}):
        scale = None if scaling is None or name not in scaling.covariates else scaling.covariate(name)
        if scale is None or scale.lowest is None or scale.highest is None:
            unknown.append(name)
            continue
        low, high = scale.lowest, scale.highest
        rounding = _ROUNDING * max(abs(low), abs(high))
        for subject in cohort:
            steps = subject.covariates[name]
            values = [v for _, v in steps] if isinstance(steps, tuple) else [steps]
            far = max(values) if max(values) - high > low - min(values) else min(values)
            if not low - rounding <= far <= high + rounding:
                rows.append((name, subject.id, far, low, high))
    if unknown:
        remarks.append(f"the range of {', '.join(unknown)} that the model has seen is not stored with it")
    return pd.DataFrame(rows, columns=["COVARIATE", "ID", "VALUE", "SEEN_LOW", "SEEN_HIGH"])


def _likelihood(saved: SavedModel, estimates: IndividualEstimates, seed: int, remarks: list[str]) -> dict[str, float]:
    """log p(data), and AIC and BIC with the numbers that were learned; of a population file all that it holds."""
    source = estimates.source
    if not (source.has_error and source.model.has_likelihood):
        remarks.append("no likelihood: it is an integral over all paths, or the model has no residual error")
        return {}
    if estimates.unsolved:
        remarks.append("no likelihood: some patients could not be solved")
        return {}
    value, error = log_likelihood(source.model, source.batch, seed=seed, start=source.z)
    model, observations = source.model, int(source.batch.observed.sum())
    number = len(model.coordinates()) + model.population.unreported()
    number += sum(part.numel() for part in model.dynamics.parameters())
    if not model.population.learned:  # then the fixed numbers of the error are coordinates too
        number -= sum(one.fixed for one in model.error.numbers())
    if isinstance(saved, SavedPopulation):
        number = saved.published().count
        remarks.append(
            f"AIC and BIC count all {number} numbers of the population file as estimated: it does not say which were "
            "fixed or shared, and with such numbers both are too high; those of the checkpoint of its training are not"
        )
    return {
        "OBJECTIVE": -2 * value,
        "ERROR": 2 * error,
        "AIC": -2 * value + 2 * number,
        "BIC": -2 * value + float(np.log(observations)) * number,
        "PARAMETERS": float(number),
        "OBSERVATIONS": float(observations),
    }

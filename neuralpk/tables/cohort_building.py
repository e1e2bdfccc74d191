"""From records to a cohort, and what its owner should know of how it was read."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from neuralpk.cohort import Cohort, Covariate, Dose, FloatArray, Occasion, Subject, Units
from neuralpk.tables.faults import Findings
from neuralpk.tables.imputation import imputed_values
from neuralpk.tables.records import BoolArray, Records


def _doses(records: Records, row: FloatArray) -> list[Dose]:
    """Every dose and reset, in the order of the table; `row` is the place of each among the records of its subject."""
    sheet, given = records.sheet, np.flatnonzero(records.given)
    dosed = (records.dose & ~records.placebo)[given]

    def column(name: str, missing: float = 0.0) -> FloatArray:
        return np.where(dosed, sheet.column(name, missing)[given], missing)

    rate = column("RATE")
    compartment = np.maximum(sheet.column("CMT", missing=1.0)[given], 1)
    fields: dict[str, list[Any]] = {
        "time": sheet.column("TIME")[given].tolist(),
        "amount": column("AMT").tolist(),
        "compartment": compartment.astype(int).tolist(),
        "rate": rate.tolist(),
        "duration": np.where(rate > 0, 0.0, column("DUR")).tolist(),
        "interval": column("II").tolist(),
        "additional": column("ADDL").astype(int).tolist(),
        "steady_state": column("SS").astype(int).tolist(),
        "reset": records.reset[given].tolist(),
        "row": row[given].tolist(),
    }
    return [Dose(*values) for values in zip(*fields.values(), strict=True)]


def _emptied(records: Records, row: FloatArray) -> dict[int, list[Dose]]:
    """The resets at which the clock of a subject restarts, by the number of its run of rows."""
    found: dict[int, list[Dose]] = {}
    for at in np.flatnonzero(records.emptied).tolist():
        reset = Dose(float(records.sheet.numbers["TIME"][at]), reset=True, row=int(row[at]))
        found.setdefault(int(records.run[at]), []).append(reset)
    return found


def _covariate(times: FloatArray, values: FloatArray, backward: bool = False) -> Covariate | None:
    """One covariate of one subject: the last value carried forward, before the first the first; or the next one carried
    backward to the record before it."""
    if (values == values[0]).all():
        return float(values[0])
    known = ~np.isnan(values)
    if not known.any():
        return None
    times, values = times[known], values[known]
    # of several values at one time the last row holds
    last = np.append(times[1:] > times[:-1], True)
    times, values = times[last], values[last]
    if backward:
        # a value begins after the record before it, by less than anything that is measured, and with the digits of a
        # single number: that record has the value before
        step = np.diff(times)
        times = np.append(
            times[0], times[:-1] + np.minimum(np.maximum(1e-5 * step, 1e-6 * np.abs(times[1:])), step / 2)
        )
    change = np.append(True, values[1:] != values[:-1])
    if change.sum() == 1:
        return float(values[0])
    return tuple(zip(times[change].tolist(), values[change].tolist(), strict=True))


def _covariates(
    records: Records,
    rows: slice,
    needed: Mapping[str, float | None],
    imputed: Mapping[str, float],
    findings: Findings,
) -> dict[str, Covariate]:
    """The covariates of the subject in `rows`; of one that is not recorded the value in `imputed` or `needed`."""
    sheet = records.sheet
    times = sheet.numbers["TIME"][rows]
    covariates: dict[str, Covariate] = {}
    for name in sheet.covariates:
        value = _covariate(times, sheet.numbers[name][rows], sheet.layout.carry == "backward")
        default = imputed.get(name, needed.get(name, needed.get(name.partition("=")[0])))
        if value is None and default is not None:
            covariates[name] = default
        elif value is None:
            detail = "no value in the whole subject"
            place = {"line": int(sheet.lines[rows.start]), "column": name, "id": sheet.ids[rows.start]}
            findings.add("NPK-D41", **place, detail=detail)
        elif isinstance(value, tuple):
            # the clock of the covariate starts with that of the subject
            covariates[name] = ((float(times[0]), value[0][1]), *value[1:])
        else:
            covariates[name] = value
    return covariates


def _occasions(records: Records, rows: slice, row: FloatArray, findings: Findings) -> tuple[Occasion, ...]:
    """The occasions of the subject in `rows`, where the column that says them was named; a row without a label is of
    the occasion before. `row` is the place of each row among the records of its subject."""
    labels = records.sheet.labels.get("occasion")
    if labels is None:
        return ()
    known = np.flatnonzero(labels[rows] != "") + rows.start
    if not len(known):
        place = {"line": int(records.sheet.lines[rows.start]), "id": records.sheet.ids[rows.start]}
        findings.add("NPK-D44", column=records.sheet.layout.occasion, detail="no value in the whole subject", **place)
        return ()
    begin = known[np.append(True, labels[known[1:]] != labels[known[:-1]])]
    time = records.sheet.numbers["TIME"]
    return tuple(Occasion(float(time[at]), str(labels[at]), int(row[at])) for at in begin.tolist())


def _warn_of_records(records: Records, findings: Findings) -> None:
    """Count what is not read as it stands."""
    sheet, value = records.sheet, records.sheet.column("DV")
    measured = records.measured
    keys = [sheet.column(name, missing=0.0)[measured] for name in ("DVID", "CMT", "TIME")]
    keys.append(records.run[measured].astype(np.float64))
    order = np.lexsort(keys)
    same = [key[order[1:]] == key[order[:-1]] for key in keys]
    replicates = int(np.logical_and.reduce(same).sum())
    # 0 is what most tables put where they have no DV
    unread = (value != 0) & ~np.isnan(value) & ~measured & (records.evid > 0)
    columns = ("RATE", "DUR", "II", "ADDL", "SS")
    idle = np.any([sheet.column(name, missing=0.0) != 0 for name in columns], axis=0) & ~records.dose
    truncated = measured & (sheet.column("CENS", missing=0.0) == 0) & ~np.isnan(sheet.column("LIMIT"))
    counts = {
        "NPK-D51": (replicates, "replicate"),
        "NPK-D54": (int(((records.evid == 0) & (records.mdv == 1)).sum()), "wanted prediction"),
        "NPK-D55": (int(unread.sum()), "DV not read"),
        "NPK-D56": (int(idle.sum()), "record with dose columns that are not read"),
        "NPK-D58": (int(truncated.sum()), "LIMIT without CENS"),
        "NPK-D59": (int(records.placebo.sum()), "dose with AMT 0"),
    }
    for rule, (count, what) in counts.items():
        if count:
            findings.warn(rule, f"{count} × {what}")


def _warn_of_subjects(ids: list[str], lacking: BoolArray, rule: str, what: str, findings: Findings) -> None:
    names = [name for name, lacks in zip(ids, lacking, strict=True) if lacks]
    if names:
        findings.warn(rule, f"{len(names)} subjects without {what}: ID {', '.join(names)}")


def _warn_of_defaults(
    records: Records, rows: list[slice], needed: Mapping[str, float | None], findings: Findings
) -> None:
    """Count the subjects in whom a covariate is not recorded."""
    for name, default in needed.items():
        if default is not None and not np.isnan(default) and name in records.sheet.numbers:
            values = records.sheet.numbers[name]
            count = sum(bool(np.isnan(values[one]).all()) for one in rows)
            if count:
                findings.warn("NPK-D57", f"{count} subjects with {name} = {default:g}")


def build(records: Records, units: Units, needed: Mapping[str, float | None], findings: Findings) -> Cohort:
    """Gather the records of each subject.

    Raises:
        DataError: a covariate that a subject lacks; no subject with an observation record.
    """
    sheet, seen, given, emptied = records.sheet, records.observation, records.given, records.emptied
    firsts = np.flatnonzero(np.diff(records.run, prepend=-1))
    bounds = np.append(firsts, len(records))
    # a row makes up to three records: the reset of a clock that restarts, an observation, and then a dose
    before = np.append(0, np.cumsum(emptied.astype(int) + seen + given))
    first_row = before[:-1] - np.repeat(before[firsts], np.diff(bounds))
    resets = _emptied(records, first_row)
    row = first_row + emptied
    doses = _doses(records, row + seen)
    measured = records.measured[seen]
    observed = {
        "times": sheet.column("TIME")[seen],
        "values": np.where(measured, sheet.column("DV")[seen], np.nan),
        "compartments": sheet.column("CMT", missing=0.0)[seen].astype(np.int64),
        "endpoints": sheet.column("DVID", missing=1.0)[seen].astype(np.int64),
        "censored": np.where(measured, sheet.column("CENS", missing=0.0)[seen], 0).astype(np.int64),
        "limits": np.where(measured, sheet.column("LIMIT")[seen], np.nan),
        "rows": row[seen],
    }
    seen_until = np.append(0, np.cumsum(seen))[bounds].tolist()
    given_until = np.append(0, np.cumsum(given))[bounds].tolist()
    dosed = np.add.reduceat(records.dose, firsts)

    ids: list[str] = sheet.ids[firsts].tolist()
    of_subjects = [slice(start, stop) for start, stop in pairwise(bounds.tolist())]
    imputed = imputed_values(records, of_subjects, findings)
    subjects, kept = [], []
    spans = zip(pairwise(bounds.tolist()), pairwise(seen_until), pairwise(given_until), strict=True)
    for number, (name, ((start, stop), (s0, s1), (g0, g1))) in enumerate(zip(ids, spans, strict=True)):
        if s0 == s1:
            continue
        rows = slice(start, stop)
        arrays = {key: values[s0:s1] for key, values in observed.items()}
        kept.append(rows)
        subjects.append(
            Subject(
                id=name,
                doses=(*doses[g0:g1], *resets.get(number, ())),
                covariates=_covariates(records, rows, needed, imputed, findings),
                occasions=_occasions(records, rows, first_row, findings),
                **arrays,
            )
        )
    if not subjects:
        findings.add("NPK-D52", detail=f"none of {len(ids)} subjects has one")
    findings.raise_any()
    _warn_of_records(records, findings)
    _warn_of_defaults(records, kept, {name: one for name, one in needed.items() if name not in imputed}, findings)
    _warn_of_subjects(ids, np.diff(seen_until) == 0, "NPK-D52", "observations", findings)
    if "AMT" in sheet.numbers:
        _warn_of_subjects(ids, (np.diff(seen_until) > 0) & (dosed == 0), "NPK-D53", "doses", findings)
    return Cohort(tuple(subjects), units, "CENS" in sheet.numbers)

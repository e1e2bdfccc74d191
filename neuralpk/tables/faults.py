"""What can be wrong with an event table: the rules, and how a fault against one is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RULES: dict[str, str] = {
    # the file
    "NPK-D01": "A table is UTF-8 text (.csv, .txt, .dat, .tsv, .tab, also .gz), .parquet, .pq, .xlsx, .xpt"
    " or .sas7bdat, without NUL bytes. Save it as UTF-8 CSV.",
    "NPK-D02": "Cells are divided by the separator, and a quote is closed in the line where it opens. Mend the quotes.",
    "NPK-D03": "A table has a header and at least one row below it. Export it again.",
    "NPK-D04": "Every row has as many cells as the header. Add the missing cells, or remove stray commas.",
    "NPK-D05": "Every column has a name, of at most 1,000 characters, but a first one of row names. Name it, or remove"
    " it: a trailing comma or exported row names may have made it.",
    "NPK-D06": "No two columns have one name (upper and lower case are the same; TINF is DUR). Rename or remove one.",
    "NPK-D07": "A table has at most 5,000,000 rows, 2 GiB, 100,000 characters a line and 1,000 a cell. Split it,"
    " or write it as Parquet and have it estimated in parts (neuralpk estimate --part_size).",
    "NPK-D08": "ID, TIME and DV are needed, and so is every column asked for by name. Pass columns=OURS=THEIRS, as"
    " in DV=CONC.",
    "NPK-D09": "Cells are divided by commas, in .tsv and .tab files by tabs. Pass separator=semicolon, tab or"
    " space (and decimal=, for decimal commas).",
    # the cells
    "NPK-D10": "Numbers are plain decimals such as 5.2 or 1e-3; missing is empty, '.', NA or NaN. Rewrite the"
    " cell, pass decimal=',' for decimal commas, or map=COLUMN:CODE=. for a code of missing (a value below the"
    " limit of quantification: <0.5 in DV, also by map=DV:BLQ=<0.5, or the limit in DV and 1 in CENS).",
    "NPK-D11": "Numbers are finite and within the range of double precision. Correct the cell, or leave it empty.",
    "NPK-D12": "Codes are whole numbers: MDV 0 or 1; SS 0, 1 or 2; CENS -1, 0 or 1; ADDL 0 to 1,000; DVID 1 to"
    " 1,000; CMT 0 to 1,000. Correct the code, or pass map=COLUMN:CODE=CODE, as in SS:99=0.",
    "NPK-D13": "Every row has an ID. Fill it in.",
    "NPK-D14": "The rows of a subject follow one another. Pass sort=True where these are of one subject, or give"
    " each subject its own ID.",
    "NPK-D15": "Every row has a TIME. Fill it in, or remove the row.",
    "NPK-D16": "TIME does not decrease within a subject but at EVID 3 or 4 or with a new occasion (OCC, PERIOD, or"
    " occasion=COLUMN). Sort the table by ID and TIME, or read it with sort=True.",
    "NPK-D17": "Where the clock restarts (EVID 3 or 4, a new occasion) a new part of the subject begins with empty"
    " compartments, and its clock goes on at the next whole time unit. With sort=True nothing may restart.",
    "NPK-D18": "TIME has numbers, or in every row a time of day (8:30, 08:30:15, 8:30 PM) with or without its date;"
    " the day may stand in DATE, DAT1, DAT2 or DAT3 as 2020-01-31, as a number of days, or in the order of dates=dmy,"
    " mdy or ydm. The unit of time is h, min, s or d. Correct the cell, or pass dates=.",
    "NPK-D19": "DVID numbers the endpoints from 1. Pass endpoint=DVID to number its texts in their order, or the"
    " column that says it, or map=DVID:TEXT=NUMBER.",
    # the records
    "NPK-D20": "EVID is 0 (observation), 1 (dose), 2 (other), 3 (reset) or 4 (reset and dose); the classic codes"
    " of RxODE are read as doses: 101 into compartment 1, 201 into 2, 110 and 120 with SS 1 and 2, 10101 an"
    " infusion whose AMT is the rate, with a record of the negative rate at its end; CMT says the same, or nothing."
    " Correct the code, or pass map=EVID:TEXT=CODE.",
    "NPK-D21": "MDV 0 says that DV was measured. Give DV, or MDV 1 for a wanted prediction.",
    "NPK-D22": "AMT is not negative, and above 0 where there is a RATE; with RATE above 0 it is 0 only for a"
    " constant infusion at steady state (SS 1, II 0). Give the amount, or EVID 2.",
    "NPK-D23": "A dose has an AMT. Give the amount, or EVID 2.",
    "NPK-D24": "AMT is 0 or missing on records that are no dose. Give EVID 1 or 4, or remove the amount.",
    "NPK-D25": "RATE -1 and -2 (the rate, or the duration, of the infusion is a parameter of the model) have no DUR."
    " Remove DUR, or give a RATE.",
    "NPK-D26": "Where RATE and DUR are both given, DUR = AMT / RATE. Remove one of them.",
    "NPK-D27": "Additional doses (ADDL above 0) need an interval II above 0. Give II, or ADDL 0.",
    "NPK-D28": "Steady state (SS 1 or 2) needs an interval II above 0, or SS 1 with AMT 0, RATE above 0 and II 0."
    " Give II, or SS 0.",
    "NPK-D29": "CMT is a number from 1, a name in compartments=, or missing. Turning a compartment off (negative CMT)"
    " is not supported. Correct the cell, or pass compartments=(name of 1, name of 2, ...).",
    "NPK-D30": "Nothing in a dose is negative. Correct RATE, DUR or II.",
    "NPK-D31": "LIMIT lies below DV where CENS is 1 and above DV where CENS is -1. Correct LIMIT, or leave it empty.",
    "NPK-D32": "An infusion at steady state lasts at most 100 intervals II. Check the units of RATE and II.",
    "NPK-D33": "A subject has at most 10,000 doses, additional ones counted. Split the table, or use an infusion.",
    "NPK-D34": "With CENS 1 or -1, DV holds the limit. Write it there, or name the column or the number that is"
    " the limit (lloq=LLOQ).",
    "NPK-D35": "A value of -99, 9999 or the like that stands out from all others is a code of missing. Pass"
    " map=COLUMN:CODE=. to leave it out, or correct it.",
    # the covariates
    "NPK-D40": "Covariates are numbers, or texts in every row of a column that covariates= names (at most 50 levels)."
    " Pass map=SEX:male=0,SEX:female=1 to code the text, or leave the column out of covariates=.",
    "NPK-D41": "Every subject has a value of every covariate at some time. Fill it in, leave the covariate out, or pass"
    " impute=WT=median (mode, a number) to put a value there.",
    "NPK-D42": "A covariate is not a copy of DV (its logarithm, DV in another unit). Leave it out of covariates=.",
    "NPK-D43": "A text is one of the levels that the model knows. Correct the cell, or pass map=COLUMN:TEXT=LEVEL.",
    "NPK-D44": "Every subject has an occasion on some row; a row without one is of the occasion before. Fill it in.",
    # read, and said in a DataWarning
    "NPK-D50": "With sort=True the rows of a subject are put together and in order of TIME.",
    "NPK-D51": "Replicates (several DV at one ID, TIME, CMT and DVID) are kept as separate observations.",
    "NPK-D52": "Subjects without any observation or wanted prediction are left out; one subject must remain.",
    "NPK-D53": "Subjects without a dose are kept, though the table has an AMT column.",
    "NPK-D54": "A record with EVID 0 and MDV 1, or without MDV and DV, is a wanted prediction; its DV is not read.",
    "NPK-D55": "DV is not read on doses with MDV 1 or without MDV, nor at EVID 2 and 3.",
    "NPK-D56": "RATE, DUR, II, ADDL and SS are not read on records that are no dose.",
    "NPK-D57": "A covariate that is not recorded in a subject has the value that the model gives for that case.",
    "NPK-D58": "LIMIT is read where CENS is 1 or -1; a value without CENS has no limit (no truncation, M2).",
    "NPK-D59": "A dose of 0 (a placebo) gives nothing and is read as EVID 2; with EVID 4 or SS 1 as EVID 3.",
    "NPK-D60": "Endpoints are numbered by DVID, or by the column named with endpoint=COLUMN; without either all"
    " values are of one endpoint.",
    "NPK-D61": "Censoring is read from CENS alone. Pass the column as CENS, with the limit in DV or named with lloq=.",
    "NPK-D62": "With impute= a covariate that is missing in a whole subject has the median or the mode of the other"
    " subjects of the table, or the number that was given.",
    "NPK-D63": "A dose is read from AMT, and its duration from DUR or RATE, in the row of the time when it is given;"
    " the rows of samples have no AMT. Pass the column that holds it, as in columns=DUR=DURATION, or give each dose a"
    " row of its own.",
    "NPK-D64": "A DV of <0.5 is a value below the limit of quantification 0.5 (CENS 1), one of >50 a value above 50"
    " (CENS -1).",
}
"""Every rule of the event table by its code: what holds, and what to do where it does not."""

_PRINTED = 20


def row_word(file: str) -> str:
    """What the numbers of rows count: lines in a text file, rows in a Parquet file or a data frame (no file name)."""
    return "line" if file.lower().removesuffix(".gz").endswith((".csv", ".txt", ".dat", ".tsv", ".tab")) else "row"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault, with its place.

    Args:
        rule: its code in `RULES`.
        file: name of the file, empty for a data frame.
        line: line of a CSV file (the header is line 1), row of a data frame or a Parquet file (from 1); None for the
            table as a whole.
        column: name in the event table.
        id: the subject.
        value: the cell.
        message: what is wrong, which rule it breaks, and the cure.
    """

    rule: str
    file: str
    line: int | None
    column: str
    id: str
    value: str
    message: str

    def __str__(self) -> str:
        place = [
            self.file or "data frame",
            f"{row_word(self.file)} {self.line}" if self.line is not None else "",
            self.column,
            f"ID {self.id}" if self.id else "",
        ]
        return f"{self.rule} {', '.join(filter(None, place))}: {self.message}"


def summary(findings: Sequence[Finding]) -> list[str]:
    """One line for each rule that a column breaks: its first fault, and how many more there are and where."""
    kinds: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        kinds.setdefault((finding.rule, finding.column), []).append(finding)
    lines = []
    for same in kinds.values():
        first, *others = same
        lines.append(str(first))
        if others:
            values = list(dict.fromkeys(one.value for one in same if one.value))
            also = f", with {', '.join(values[:5])}{', …' if len(values) > 5 else ''}" if len(values) > 1 else ""
            places = ", ".join(str(one.line) for one in others[:5] if one.line is not None)
            where = f" in {row_word(first.file)}s {places}{', …' if len(others) > 5 else ''}" if places else ""
            lines[-1] += f" ({len(same):,} times: also{where}{also})"
    return lines


class DataError(ValueError):
    """The table breaks rules. The message has one line for each rule that a column breaks, at most 20; `findings` has
    every fault.

    Args:
        findings: at least one.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        lines = summary(self.findings)
        rest = len(lines) - _PRINTED
        super().__init__("\n".join([*lines[:_PRINTED], f"(+{rest} more)"] if rest > 0 else lines))


class DataWarning(UserWarning):
    """Something in the table was read in a way that its owner should know of."""


class Findings:
    """Collects the faults and the warnings of one table while it is read."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Finding] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def add(
        self, rule: str, *, line: int | None = None, column: str = "", id: str = "", value: str = "", detail: str = ""
    ) -> None:
        """Note a fault; `detail` says what the value alone does not."""
        value = value if len(value) <= 40 else f"{value[:40]}…"
        said = detail or (f"{column or 'found'} is {value!r}" if value else "missing")
        self.found.append(Finding(rule, self.file, line, column, id, value, f"{said}. {RULES[rule]}"))

    def warn(self, rule: str, detail: str) -> None:
        """Note something that is read nevertheless."""
        self.warnings.append(f"{rule} {self.file or 'data frame'}: {detail}. {RULES[rule]}")

    def note(self, detail: str) -> None:
        """Note how the table was read where that was asked for."""
        self.notes.append(f"{self.file or 'data frame'}: {detail}")

    def raise_any(self) -> None:
        """Raise what was found, in the order of the table; what concerns it as a whole comes last.

        Raises:
            DataError: anything was found.
        """
        if self.found:
            raise DataError(sorted(self.found, key=lambda finding: (finding.line is None, finding.line or 0)))

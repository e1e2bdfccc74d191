"""What can be wrong with an event table: the rules, and how a fault against one is reported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RULES: dict[str, str] = {
    # the file
    "NPK-D01": "A table is UTF-8 text (.csv, .txt) or Parquet (.parquet), without NUL bytes. Save it as UTF-8 CSV.",
    "NPK-D02": "Cells are divided by commas, and a quote is closed in the line where it opens. Mend the quotes.",
    "NPK-D03": "A table has a header and at least one row below it. Export it again.",
    "NPK-D04": "Every row has as many cells as the header. Add the missing cells, or remove stray commas.",
    "NPK-D05": "Every column has a name, of at most 1,000 characters. Name it, or remove it: a trailing comma or"
    " exported row names may have made it.",
    "NPK-D06": "No two columns have one name (upper and lower case are the same; TINF is DUR). Rename or remove one.",
    "NPK-D07": "A table has at most 5,000,000 rows, 2 GiB, 100,000 characters a line and 1,000 a cell. Split it.",
    "NPK-D08": "ID, TIME and DV are needed, and so is every column asked for by name. Pass columns={theirs: ours}.",
    # the cells
    "NPK-D10": "Numbers are plain decimals such as 5.2 or 1e-3; missing is empty, '.', NA or NaN. Rewrite the cell"
    " (for a value below the limit of quantification: the limit in DV and 1 in CENS).",
    "NPK-D11": "Numbers are finite and within the range of double precision. Correct the cell, or leave it empty.",
    "NPK-D12": "Codes are whole numbers: MDV 0 or 1; SS 0, 1 or 2; CENS -1, 0 or 1; ADDL 0 to 10,000; DVID 1 to 1,000;"
    " CMT 0 to 1,000. Correct the code.",
    "NPK-D13": "Every row has an ID. Fill it in.",
    "NPK-D14": "The rows of a subject follow one another. Sort by ID and TIME, or give each subject its own ID.",
    "NPK-D15": "Every row has a TIME. Fill it in, or remove the row.",
    "NPK-D16": "TIME does not decrease within a subject. Sort the table by ID and TIME, or read it with sort=True.",
    "NPK-D17": "A restart of the clock at EVID 3 or 4 is not supported. Continue the clock of the subject, or give the"
    " part after the reset an ID of its own.",
    # the records
    "NPK-D20": "EVID is 0 (observation), 1 (dose), 2 (other), 3 (reset) or 4 (reset and dose); 101 is read as 1."
    " Correct the code.",
    "NPK-D21": "MDV 0 says that DV was measured. Give DV, or MDV 1 for a wanted prediction.",
    "NPK-D22": "AMT is above 0 on a dose; 0 only for a constant infusion at steady state (SS 1, RATE above 0, II 0)."
    " Give the amount, or EVID 2.",
    "NPK-D23": "A dose has an AMT. Give the amount, or EVID 2.",
    "NPK-D24": "AMT is 0 or missing on records that are no dose. Give EVID 1 or 4, or remove the amount.",
    "NPK-D25": "RATE -1 and -2 (a rate or duration that the model estimates) are not supported. Give RATE or DUR.",
    "NPK-D26": "Where RATE and DUR are both given, DUR = AMT / RATE. Remove one of them.",
    "NPK-D27": "Additional doses (ADDL above 0) need an interval II above 0. Give II, or ADDL 0.",
    "NPK-D28": "Steady state (SS 1 or 2) needs an interval II above 0, or SS 1 with AMT 0, RATE above 0 and II 0."
    " Give II, or SS 0.",
    "NPK-D29": "CMT is a number from 1, a name in compartments=, or missing. Turning a compartment off (negative CMT)"
    " is not supported. Correct the cell, or pass compartments=(name of 1, name of 2, ...).",
    "NPK-D30": "Nothing in a dose is negative. Correct RATE, DUR or II.",
    "NPK-D31": "LIMIT lies below DV where CENS is 1 and above DV where CENS is -1. Correct LIMIT, or leave it empty.",
    # the covariates
    "NPK-D40": "Covariates are numbers. Code the text as numbers, or leave the column out with covariates=(...).",
    "NPK-D41": "Every subject has a value of every covariate at some time. Fill it in, or leave the covariate out.",
    # read, and said in a DataWarning
    "NPK-D50": "With sort=True rows are put in order of TIME within their subject.",
    "NPK-D51": "Replicates (several DV at one ID, TIME, CMT and DVID) are kept as separate observations.",
    "NPK-D52": "Subjects without any observation or wanted prediction are left out; one subject must remain.",
    "NPK-D53": "Subjects without a dose are kept, though the table has an AMT column.",
    "NPK-D54": "A record with EVID 0 and MDV 1, or without MDV and DV, is a wanted prediction; its DV is not read.",
    "NPK-D55": "DV is not read on doses with MDV 1 or without MDV, nor at EVID 2 and 3.",
    "NPK-D56": "RATE, DUR, II, ADDL and SS are not read on records that are no dose.",
    "NPK-D57": "A covariate that is not recorded in a subject has the value that the model gives for that case.",
}
"""Every rule of the event table by its code: what holds, and what to do where it does not."""

_PRINTED = 20


def row_word(file: str) -> str:
    """What the numbers of rows count: lines in a text file, rows in a Parquet file or a data frame (no file name)."""
    return "line" if file.lower().endswith((".csv", ".txt")) else "row"


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


class DataError(ValueError):
    """The table breaks rules. The message shows the first 20 faults; `findings` has all of them.

    Args:
        findings: at least one.
    """

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = list(findings)
        shown = [str(finding) for finding in self.findings[:_PRINTED]]
        rest = len(self.findings) - len(shown)
        super().__init__("\n".join([*shown, f"(+{rest} more)"] if rest else shown))


class DataWarning(UserWarning):
    """Something in the table was read in a way that its owner should know of."""


class Findings:
    """Collects the faults and the warnings of one table while it is read."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.found: list[Finding] = []
        self.warnings: list[str] = []

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

    def raise_any(self) -> None:
        """Raise what was found, in the order of the table; what concerns it as a whole comes last.

        Raises:
            DataError: anything was found.
        """
        if self.found:
            raise DataError(sorted(self.found, key=lambda finding: (finding.line is None, finding.line or 0)))

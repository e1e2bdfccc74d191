"""Layout of a table: which columns, rows and codes of it mean what, as its reader says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from neuralpk.tables.cells import number
from neuralpk.tables.row_filter import RowFilter

RESERVED = (
    *("ID", "TIME", "EVID", "MDV", "AMT", "RATE", "DUR", "II", "ADDL", "SS"),
    *("CMT", "DVID", "DV", "CENS", "LIMIT"),
)
"""Columns with a meaning of their own."""

OCCASIONS = ("OCC", "PERIOD")
"""Columns whose new value may restart the clock."""

DATES = {"DATE": "", "DAT1": "dmy", "DAT2": "ymd", "DAT3": "ydm"}
"""Columns of dates beside times of day, and the order of day, month and year that NONMEM gives to their names."""

FLAGS = ("BLQ", "BQL", "BLOQ", "BLQFL", "BLQFN")
"""Columns that say what CENS says, in words of their own."""

LIMITS = ("LLOQ", "LOQ", "LLQ", "ALLOQ")
"""Columns that may hold a limit of quantification."""

ENDPOINTS = ("YTYPE", "TYPE", "PARAMCD", "PARAM", "DVNAME", "ENDPOINT", "ANALYTE", "OUTPUT")
"""Columns that may say which endpoint a value belongs to."""

LIKELY = {
    "ID": ("SUBJ", "SUBJID", "SUBJECT", "USUBJID", "PATIENT", "PATID", "NMID", "CID", "ANIMAL"),
    "TIME": ("AFRLT", "TAFD", "TSFD", "DATETIME", "HOUR", "HOURS", "T", "TAD"),
    "DV": ("LIDV", "CONC", "CONCENTRATION", "CP", "AVAL", "PCSTRESN", "Y"),
    "AMT": ("DOSE", "DOSEA", "AMOUNT", "DOSEAMT", "EXDOSE"),
    "DUR": ("DURATION", "INFDUR", "DURINF"),
}
"""Names under which tables have these columns; they are suggested, and not taken."""

SEPARATORS = {"tab": "\t", "semicolon": ";", "comma": ",", "space": " "}

NAMED_LAYOUTS: dict[str, dict[str, str]] = {
    # CDISC ADaM for population PK (ADPPK): actual time since the first dose, flag of values below the limit
    "adppk": {"ID": "USUBJID", "TIME": "AFRLT", "CENS": "BLQFN"},
}
"""Maps of columns by the name of a standard."""

ALL = "all"
"""Asks for every column that has no other meaning as a covariate."""

Columns = Mapping[str, str] | str | Sequence[str] | None
Codes = Mapping[str, Mapping[str, str]] | str | Sequence[str] | None


@dataclass(frozen=True)
class Layout:
    """How a table is to be read.

    Args:
        columns: our name to theirs.
        covariates: names of the covariates; None for every column that has no other meaning.
        endpoint: column that says which endpoint a value belongs to, instead of DVID.
        occasion: column that says the occasion of each row; its new value may restart the clock, instead of that of OCC
            and PERIOD.
        lloq: column, or number, that is the limit of quantification of the values with CENS 1.
        codes: by column, what a cell is read as.
        rows: which rows are left out.
        separator: between two cells; empty for what the ending of the file says.
        decimal: ``.`` or ``,``.
        dates: order of day, month and year: ``ymd``, ``dmy``, ``mdy`` or ``ydm``.
        compartments: names that CMT uses, in the order of their numbers from 1.
        sort: whether the rows of each subject are put in order of TIME.
        labels: further columns to keep as texts.
        optional: covariates that are read where they stand in the table.
        impute: by covariate, or for all by an empty name, what stands for one that is missing in a whole subject:
            ``median``, ``mode`` or a number.
        carry: which way the values of a covariate are carried in time: ``forward`` or ``backward``.
        anonymous: whether subjects are named by their order in the table, whatever their ID is.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    covariates: tuple[str, ...] | None = ()
    endpoint: str = ""
    occasion: str = ""
    lloq: str = ""
    codes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rows: RowFilter = RowFilter()  # noqa: RUF009  # frozen
    separator: str = ""
    decimal: str = "."
    dates: str = ""
    compartments: tuple[str, ...] = ()
    sort: bool = False
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    impute: Mapping[str, str] = field(default_factory=dict)
    carry: str = "forward"
    anonymous: bool = False

    @classmethod
    def of(
        cls,
        columns: Columns = None,
        covariates: Sequence[str] | str | None = None,
        endpoint: str | None = None,
        occasion: str | None = None,
        lloq: str | float | None = None,
        map: Codes = None,
        ignore: str | Sequence[str] | None = None,
        separator: str | None = None,
        decimal: str = ".",
        dates: str | None = None,
        compartments: Sequence[str] | None = None,
        sort: bool = False,
        impute: Mapping[str, str | float] | str | None = None,
        carry: str = "forward",
    ) -> Layout:
        """From the arguments of `neuralpk.tables.read_table` on how a table is read.

        Raises:
            ValueError: one that cannot be, by name.
        """
        if separator is not None:
            separator = SEPARATORS.get(separator.lower(), separator)
            if separator not in SEPARATORS.values():
                raise ValueError(f"separator is one of {', '.join(SEPARATORS)} or that character, not {separator!r}")
        if decimal not in (".", ","):
            raise ValueError(f"decimal is '.' or ',', not {decimal!r}")
        if decimal == "," and separator == ",":
            raise ValueError("with a decimal comma the separator cannot be a comma: give separator=';' or 'tab'")
        if dates is not None and dates not in ("ymd", "dmy", "mdy", "ydm"):
            raise ValueError(f"dates is the order ymd, dmy, mdy or ydm, not {dates!r}")
        if carry not in ("forward", "backward"):
            raise ValueError(f"carry is forward (the last value) or backward (the next one), not {carry!r}")
        names = [covariates] if isinstance(covariates, str) else covariates
        if isinstance(covariates, str) and covariates != ALL:
            names = [name.strip() for name in covariates.split(",") if name.strip()]
        return cls(
            columns=_columns(columns),
            covariates=None if names is not None and list(names) == [ALL] else tuple(names or ()),
            endpoint=endpoint or "",
            occasion=occasion or "",
            lloq="" if lloq is None else str(lloq),
            codes=_codes(map),
            rows=RowFilter.of(ignore),
            separator=separator or "",
            decimal=decimal,
            dates=dates or "",
            compartments=tuple(compartments or ()),
            sort=sort,
            impute=_imputed(impute),
            carry=carry,
        )


def _pairs(text: str, said: str, example: str) -> Iterable[tuple[str, str]]:
    for part in text.split(","):
        left, equals, right = part.partition("=")
        if not (equals and left.strip()):
            raise ValueError(f"{said}: {part.strip()!r} is not of the form {example}")
        yield left.strip(), right.strip()


def _imputed(given: Mapping[str, str | float] | str | None) -> dict[str, str]:
    if isinstance(given, str) and "=" not in given:
        given = {"": given.strip()}
    elif isinstance(given, str):
        given = dict(_pairs(given, "impute", "COVARIATE=median, mode or a number, such as WT=median"))
    found = {str(name): str(how) for name, how in (given or {}).items()}
    for name, how in found.items():
        value = None if how in ("median", "mode") else number(how)
        if how not in ("median", "mode") and (not name or value is None or value != value):
            raise ValueError(f"impute: {name or 'all'} is {how!r}; it is median, mode or, of one covariate, a number")
    return found


def _columns(columns: Columns) -> dict[str, str]:
    if isinstance(columns, str):
        if columns.lower() in NAMED_LAYOUTS:
            return NAMED_LAYOUTS[columns.lower()]
        columns = [columns]
    if not isinstance(columns, Mapping):
        pairs = [_pairs(text, "columns", "OURS=THEIRS, such as DV=LIDV") for text in columns or ()]
        columns = dict(pair for found in pairs for pair in found)
    ours = {str(k): str(v) for k, v in columns.items()}
    return {_reserved(name): theirs for name, theirs in ours.items()}


def _reserved(name: str) -> str:
    upper = "DUR" if name.upper() == "TINF" else name.upper()
    return upper if upper in RESERVED else name


def _codes(asked: Codes) -> dict[str, dict[str, str]]:
    """``SS:99=0,DV:9999=.`` as ``{"SS": {"99": "0"}, "DV": {"9999": "."}}``."""
    if isinstance(asked, Mapping):
        return {column: {str(k): str(v) for k, v in codes.items()} for column, codes in asked.items()}
    found: dict[str, dict[str, str]] = {}
    for text in [asked] if isinstance(asked, str) else asked or ():
        for left, right in _pairs(text, "map", "COLUMN:CODE=CODE, such as SS:99=0 or DV:9999=."):
            column, colon, code = left.partition(":")
            if not colon or not column.strip():
                raise ValueError(f"map: {left!r} is not of the form COLUMN:CODE=CODE, such as SS:99=0 or DV:9999=.")
            found.setdefault(column.strip(), {})[code.strip()] = right or "."
    return found


def likely(name: str, header: Sequence[str]) -> str:
    """The column of a header that may be meant by a name, by its first word; empty where there is none."""
    words = (name, *LIKELY.get(name, ()))
    firsts = {heading: re.split(r"[^A-Za-z]", heading)[0].upper() for heading in header}
    # T1 and Y2 are no words with a number
    return next((of for of, first in firsts.items() if of.upper() in words or (len(first) > 1 and first in words)), "")


def matches(code: str, cell: str) -> bool:
    """Whether a cell is a code: the same text, or the same number."""
    code, cell = code.strip(), cell.strip()
    value = number(code)
    return code == cell or (value is not None and value == number(cell))

"""Rows that are left out on request: conditions on cells, and the comment marks of NONMEM."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from neuralpk.tables.cells import BLANKS, MISSING, number

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_OTHER_WORDS = {
    "=": "==", "/=": "!=", ".EQ.": "==", ".EQN.": "==", ".NE.": "!=", ".NEN.": "!=",
    ".GT.": ">", ".GE.": ">=", ".LT.": "<", ".LE.": "<=",
}  # fmt: skip
_CONDITION = re.compile(
    r"\s*(?P<column>[^\s=!<>/]+?)\s*(?P<compare>==|!=|/=|>=|<=|>|<|=|\.(?:EQ|EQN|NE|NEN|GT|GE|LT|LE)\.)\s*(?P<value>.+?)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Condition:
    """``COLUMN == value``; a comparison of numbers where both are numbers, else of texts.

    Args:
        column: name in the table, or ours.
        compare: one of ``==``, ``!=``, ``>``, ``>=``, ``<``, ``<=``.
        value: as it was written, ``.`` for missing.
    """

    column: str
    compare: str
    value: str

    def holds(self, cell: str, decimal: str) -> bool:
        """Whether it is true of a cell; a missing cell is equal to ``.`` alone and is neither larger nor smaller."""
        cell, wanted = cell.strip(BLANKS), self.value.strip(BLANKS)
        if cell in MISSING or wanted in MISSING:
            same = cell in MISSING and wanted in MISSING
            return same if self.compare == "==" else not same if self.compare == "!=" else False
        left, right = number(cell, decimal), number(wanted)
        if left is not None and right is not None:
            return _COMPARISONS[self.compare](left, right)
        return self.compare in ("==", "!=") and (cell == wanted) == (self.compare == "==")


@dataclass(frozen=True)
class RowFilter:
    """The rows of a table that are not read.

    Args:
        marks: characters; a row whose first cell begins with one is a comment. ``@`` means any letter, or ``@``.
        conditions: a row is left out where all conditions of one of the groups hold.
        text: as it was asked for.
    """

    marks: str = ""
    conditions: tuple[tuple[Condition, ...], ...] = ()
    text: str = ""

    @classmethod
    def of(cls, asked: str | Sequence[str] | None) -> RowFilter:
        """From ``FLAG == 1``, ``SD.EQ.0, AGE > 60`` (one of them is enough), ``DVID == 2 and TIME > 24``, ``@``, ``#``
        or ``C``, alone or several.

        Raises:
            ValueError: a text that is no condition.
        """
        words = [asked] if isinstance(asked, str) else list(asked or ())
        marks, groups = "", []
        for word in words:
            text = re.sub(r"^IGNORE\s*=\s*", "", word.strip(), flags=re.IGNORECASE)
            text = text[1:-1] if text.startswith("(") and text.endswith(")") else text
            if text in ("@", "#", "C"):
                marks += text
                continue
            for group in re.split(r",|\s+or\s+|\|\|", text, flags=re.IGNORECASE):
                parts = re.split(r"\s+and\s+|&&", group, flags=re.IGNORECASE)
                groups.append(tuple(_condition(part, word) for part in parts))
        return cls(marks, tuple(groups), ", ".join(words))

    @property
    def columns(self) -> set[str]:
        """Names of the columns that the conditions read."""
        return {condition.column for group in self.conditions for condition in group}

    def is_comment(self, first: str) -> bool:
        """Whether a row with this first cell is a comment."""
        first = first.strip(BLANKS)[:1]
        return bool(first) and (first in self.marks or ("@" in self.marks and first.isalpha()))

    def kept(self, columns: Mapping[str, Sequence[str]], rows: int, decimal: str) -> list[bool]:
        """Whether each row is read.

        Args:
            columns: cells of the columns that the conditions read, by name.
            rows: how many there are.
            decimal: decimal sign of the cells.
        """
        left_out = [False] * rows
        for group in self.conditions:
            hits = [True] * rows
            for condition in group:
                cells = columns[condition.column]
                true_of = {cell: condition.holds(cell, decimal) for cell in set(cells)}
                hits = [hit and true_of[cell] for hit, cell in zip(hits, cells, strict=True)]
            left_out = [out or hit for out, hit in zip(left_out, hits, strict=True)]
        return [not out for out in left_out]


def _condition(text: str, asked: str) -> Condition:
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise ValueError(
            f"ignore: {asked!r} is no condition. Write COLUMN == value (or !=, >, >=, <, <=; several with 'and', or"
            " with a comma where one is enough), or @, # or C for comment rows"
        )
    compare = found["compare"].upper()
    value = found["value"].strip("\"'")
    return Condition(found["column"].strip("\"'"), _OTHER_WORDS.get(compare, compare), value)

"""Where what a model knows comes from, in words for a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Origin(NamedTuple):
    """Whose data a model has learned from; a checkpoint carries it beside the magnitudes of the data.

    Attributes:
        subjects: how many there were.
        populations: the prior over populations that simulated subjects come from; empty for a study.
        pretraining: what the model was pre-trained on before it saw these subjects; empty for nothing.
    """

    subjects: int = 1
    populations: str = ""
    pretraining: str = ""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any] | None) -> Origin:
        """From the dictionary that a data module gives or a checkpoint has for ``scaling``; what it lacks is empty."""
        plain = plain or {}
        words = [str(plain.get(name, "")) for name in ("populations", "pretraining")]
        return cls(int(plain.get("subjects", 1)), *words)

    @property
    def track(self) -> str:
        """What the model has learned from: the study's own patients only, or others before them."""
        if self.populations:
            return f"pre-trained on {self.described}, tuned to no study"
        if self.pretraining:
            return f"pre-trained on {self.pretraining}, then tuned to the study's {self.subjects} patients"
        return f"learned from the study's own {self.subjects} patients only"

    @property
    def described(self) -> str:
        """These subjects, where a study is to start from them."""
        if self.populations:
            return f"{self.subjects} simulated patients of {self.populations}"
        return f"{self.subjects} patients of another study"

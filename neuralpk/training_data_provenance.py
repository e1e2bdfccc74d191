"""Provenance of a trained model: the data that it has learned from, in words for a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Provenance(NamedTuple):
    """Data that a model has learned from; a checkpoint holds them beside the magnitudes of the data.

    Attributes:
        subjects: number of subjects.
        populations: the prior over populations that simulated subjects come from; empty for a study.
        pretraining: the data of a pre-training before these subjects; empty for none.
    """

    subjects: int = 1
    populations: str = ""
    pretraining: str = ""

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any] | None) -> Provenance:
        """From the dictionary of `plain`, such as a checkpoint holds; missing entries are empty."""
        plain = plain or {}
        words = [str(plain.get(name, "")) for name in ("populations", "pretraining")]
        return cls(int(plain.get("subjects", 1)), *words)

    def plain(self) -> dict[str, Any]:
        """As a dictionary of plain values."""
        return dict(self._asdict())

    @property
    def description(self) -> str:
        """What the model has learned from: the patients of the study only, or others before them."""
        if self.populations:
            return f"pre-trained on {self.data_description}, tuned to no study"
        if self.pretraining:
            return f"pre-trained on {self.pretraining}, then tuned to the study's {self.subjects} subjects"
        return f"learned from the study's own {self.subjects} subjects only"

    @property
    def data_description(self) -> str:
        """The subjects themselves, for the report of a study that starts from this model."""
        if self.populations:
            return f"{self.subjects} simulated patients of {self.populations}"
        return f"{self.subjects} patients of another study"

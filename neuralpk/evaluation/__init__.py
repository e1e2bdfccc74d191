"""A model judged on a table: residuals, simulated studies, a verdict by a fixed rule."""

from __future__ import annotations

from neuralpk.evaluation.comparison import Comparison
from neuralpk.evaluation.evaluating import evaluate
from neuralpk.evaluation.evaluation import FIGURES, Evaluation

__all__ = ["FIGURES", "Comparison", "Evaluation", "evaluate"]

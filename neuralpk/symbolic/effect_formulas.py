"""Formulas for a learned effect of covariates: a few terms of a few covariates that do the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from neuralpk.parameters import CovariateEffect
from neuralpk.parameters.covariates import number
from neuralpk.symbolic.best_subsets import best_subsets

# by name: as text, and as a function of the covariate and its reference
_CURVES: dict[str, tuple[str, Callable[[Tensor, float], Tensor]]] = {
    "log": ("log({c}/{reference})", lambda c, reference: torch.log(c / reference)),
    "log2": ("log({c}/{reference})^2", lambda c, reference: torch.log(c / reference).square()),
    "line": ("({c}/{reference} - 1)", lambda c, reference: c / reference - 1),
    "inverse": ("({reference}/{c} - 1)", lambda c, reference: 1 / (c / reference) - 1),
    "binary": ("{c}", lambda c, _: c),
}
_POSITIVE = ("log", "log2", "line", "inverse")


class FormulaEffect(CovariateEffect):
    """Sum of terms; of a log-normal parameter::

        theta = typical · exp(Σ_k coefficient_k · term_k)        shift = Σ_k coefficient_k · term_k

    A term is a curve of one covariate, or the product of curves of several. With x = c/reference the curves are log(x),
    log(x)², x − 1 and 1/x − 1 of a positive covariate (``log``, ``log2``, ``line``, ``inverse``), and c of one that is
    0 or 1 (``binary``). Every term is 0 at the reference.

    Args:
        covariates: their names.
        reference: of each; not used of one that is 0 or 1.
        terms: the curve of each covariate of a term, as in ``[{"WT": "log"}, {"WT": "log", "SEX": "binary"}]``.
        coefficients: starting value of each term; None for 0.

    Raises:
        ValueError: lists of a wrong length; a curve or a covariate that does not exist; a reference that is not
            positive.
    """

    def __init__(
        self,
        covariates: list[str],
        reference: list[float],
        terms: list[dict[str, str]],
        coefficients: list[float] | None = None,
    ) -> None:
        super().__init__(covariates)
        if len(reference) != len(covariates) or not terms or len(coefficients or terms) != len(terms):
            raise ValueError("FormulaEffect has a reference for each covariate and a coefficient for each term")
        self.reference, self.terms = dict(zip(covariates, reference, strict=True)), [dict(term) for term in terms]
        for name, curve in (pair for term in self.terms for pair in term.items()):
            if name not in self.reference or curve not in _CURVES:
                known = f"{', '.join(covariates)} and {', '.join(_CURVES)}"
                raise ValueError(f"FormulaEffect: {name}: {curve} is no term; covariates and curves are {known}")
            if curve != "binary" and not self.reference[name] > 0:
                raise ValueError(f"FormulaEffect: the reference of {name} must be above 0, not {self.reference[name]}")
        starts = torch.tensor(coefficients or [0.0] * len(terms), dtype=torch.float64)
        self.weights = nn.ParameterList(nn.Parameter(start) for start in starts)

    def features(self, covariates: Tensor) -> Tensor:
        """The terms, ``[..., term]``, of recorded covariates ``[..., covariate]``."""
        columns = dict(zip(self.covariates, covariates.unbind(-1), strict=True))
        found = []
        for term in self.terms:
            value = torch.ones_like(covariates[..., 0])
            for name, curve in term.items():
                value = value * _CURVES[curve][1](columns[name], self.reference[name])
            found.append(value)
        return torch.stack(found, dim=-1)

    def forward(self, covariates: Tensor) -> Tensor:
        shift: Tensor = self.features(covariates) @ torch.stack([*self.weights])
        return shift

    def coefficients(self) -> dict[str, nn.Parameter]:
        return {self._text(term): weight for term, weight in zip(self.terms, self.weights, strict=True)}

    def references(self) -> dict[str, float | str]:
        return dict(self.reference.items())

    def fitted(self) -> FormulaEffect:
        values = [number(weight) for weight in self.weights]
        return FormulaEffect([*self.covariates], [*self.reference.values()], self.terms, values)

    def _text(self, term: Mapping[str, str]) -> str:
        return "*".join(
            _CURVES[curve][0].format(c=c, reference=f"{self.reference[c]:.3g}") for c, curve in term.items()
        )

    def __str__(self) -> str:
        pairs = [(number(weight), text) for text, weight in self.coefficients().items()]
        texts = [f"{'-' if value < 0 else '+'} {abs(value):.3g}*{text}" for value, text in pairs]
        return " ".join(texts).removeprefix("+ ")


@dataclass(frozen=True)
class EffectFormula:
    """A formula in the place of a learned effect.

    Attributes:
        effect: the formula; its coefficients are starting values of a fit.
        deviation: root mean square difference from the learned effect over the patients.
        explained: share of the mean square of the learned effect, from 0 to 1.
    """

    effect: FormulaEffect
    deviation: float
    explained: float

    def __str__(self) -> str:
        return f"{self.effect} ({100 * self.explained:.0f} % of the effect)"


def find_effects(effect: CovariateEffect, covariates: Tensor, most: int = 3, terms: int = 4) -> list[EffectFormula]:
    """Formulas that follow a learned effect, such as a network, one for each number of terms, the smallest first.

    Of each number of terms it is the one with the least squares over the patients, among all that read at most so many
    covariates. Terms are the curves of `FormulaEffect`, and products of two logarithms or of one with a covariate that
    is 0 or 1. In a fit the formula takes the place of the network: ``effects={"CL": [formula.effect]}``.

    Args:
        effect: with a reference for each of its covariates.
        covariates: of the patients, in the order of the effect, ``[patient, covariate]``.
        most: covariates in a formula.
        terms: of the largest formula.

    Raises:
        ValueError: fewer patients than terms; an effect that is the same in all patients; a covariate that is neither
            positive nor 0 or 1.
    """
    covariates = covariates.detach().double()
    target = effect(covariates.to(next(effect.parameters(), covariates).dtype)).detach().double()
    if len(covariates) <= terms or not bool((target - target[0]).abs().max() > 0):
        raise ValueError(f"formulas of {terms} terms need more patients, and an effect that differs between them")
    kinds, reference = {}, {}
    for name, column in zip(effect.covariates, covariates.T, strict=True):
        binary = bool(((column == 0) | (column == 1)).all())
        kinds[name] = ("binary",) if binary else _POSITIVE
        known = effect.references().get(name)
        reference[name] = 1.0 if binary else float(known if isinstance(known, float) else column.median())
        if not binary and not bool((column > 0).all()):
            raise ValueError(f"{name} is neither positive in all patients nor 0 or 1: no formula is known for it")
    best: dict[int, tuple[float, FormulaEffect]] = {}
    for chosen in combinations(effect.covariates, min(most, len(effect.covariates))):
        library = _library({name: kinds[name] for name in chosen})
        columns = covariates[:, [effect.covariates.index(name) for name in chosen]]
        formula = FormulaEffect([*chosen], [reference[name] for name in chosen], library)
        design = formula.features(columns)
        found = best_subsets(design[None], target[None], min(terms, len(library)), len(library))
        for size, (subsets, coefficients, squares) in enumerate(found[1:], 1):
            if size not in best or float(squares[0, 0]) < best[size][0]:
                used = [library[k] for k in subsets[0, 0].tolist()]
                read = [name for name in chosen if any(name in term for term in used)]
                at = [reference[name] for name in read]
                best[size] = float(squares[0, 0]), FormulaEffect(read, at, used, coefficients[0, 0].tolist())
    total, count = float(target.square().sum()), len(target)
    return [
        EffectFormula(one, (squares / count) ** 0.5, 1 - squares / total) for _, (squares, one) in sorted(best.items())
    ]


def _library(kinds: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Curves of each covariate, and products of the first of two."""
    single = [{name: curve} for name, curves in kinds.items() for curve in curves]
    return single + [{a: kinds[a][0], b: kinds[b][0]} for a, b in combinations(kinds, 2)]

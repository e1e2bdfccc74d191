"""Which few of many terms explain a target: subsets of a linear regression, grown from the best smaller ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# of the squared length of a column: keeps terms that cannot be told apart from making each other's opposite
_RIDGE = 1e-12


def criterion(squares: Tensor, records: Tensor, size: Tensor, terms: int) -> Tensor:
    """Extended Bayesian information criterion of k out of p terms, the variance unknown (Chen and Chen 2008)::

        n·log(squares/n) + k·(log(n) + 2·log(p))

    The second penalty pays for the choice: the best of p useless terms explains more than one that was named before.

    Args:
        squares: residual sum of squares.
        records: n.
        size: k.
        terms: p.
    """
    charge = torch.log(records) + 2 * math.log(terms)
    return records * torch.log(squares / records) + size * charge


def without(columns: Tensor, nuisance: Tensor) -> Tensor:
    """What of some columns ``[problem, record, column]`` other columns cannot explain."""
    base, _ = torch.linalg.qr(nuisance)
    rest: Tensor = columns - base @ (base.mT @ columns)
    return rest


def best_subsets(design: Tensor, target: Tensor, most: int, width: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Subsets of columns with small residuals, of none to `most` columns: each size is grown by every column from the
    `width` best of the size before, so that with a width of all columns pairs are searched in full.

    Args:
        design: ``[problem, record, term]``.
        target: ``[problem, record]``.
        most: columns in the largest subset.
        width: subsets kept of each size.

    Returns:
        For each size from 0 on: the subsets, ``[problem, subset, size]``, best first; their coefficients, likewise;
        and their residual sums of squares, ``[problem, subset]``.
    """
    problems, _, terms = design.shape
    length = design.norm(dim=1).clamp(min=torch.finfo(design.dtype).tiny)
    unit = design / length[:, None]
    gram = unit.mT @ unit + _RIDGE * torch.eye(terms, dtype=design.dtype, device=design.device)
    product = (unit.mT @ target[..., None])[..., 0]
    total = target.square().sum(1)
    every = torch.arange(terms, device=design.device)
    kept = every.new_zeros((problems, 1, 0))
    found = [(kept, target.new_zeros(kept.shape), total[:, None])]
    for size in range(1, most + 1):
        grown = torch.cat(
            [
                kept[:, :, None].expand(-1, -1, terms, -1),
                every[None, None, :, None].expand(problems, kept.shape[1], -1, 1),
            ],
            dim=-1,
        ).flatten(1, 2)
        grown = grown.sort(-1).values
        # a column twice, and a subset that several smaller ones lead to
        code = (grown * terms ** torch.arange(size, device=design.device)).sum(-1)
        code, order = code.sort(dim=1, stable=True)
        again = torch.nn.functional.pad(code[:, 1:] == code[:, :-1], (1, 0))
        grown = grown.gather(1, order[..., None].expand(-1, -1, size))
        again |= (grown[..., 1:] == grown[..., :-1]).any(-1)
        matrix = gram[torch.arange(problems)[:, None, None, None], grown[..., :, None], grown[..., None, :]]
        right = product.gather(1, grown.flatten(1)).view(grown.shape)
        coefficient, _ = torch.linalg.solve_ex(
            torch.where(again[..., None, None], torch.eye(size, dtype=gram.dtype), matrix), right
        )
        gain = torch.where(again, -torch.inf, (coefficient * right).sum(-1))
        number = min(width, math.comb(terms, size), int((~again).sum(1).min()))
        gain, best = gain.topk(number, dim=1)
        kept = grown.gather(1, best[..., None].expand(-1, -1, size))
        coefficient = coefficient.gather(1, best[..., None].expand(-1, -1, size))
        coefficient = coefficient / length.gather(1, kept.flatten(1)).view(kept.shape)
        found.append((kept, coefficient, (total[:, None] - gain).clamp(min=1e-12 * total[:, None])))
    return found

"""Quantiles of weighted draws: the ends of an interval."""

from __future__ import annotations

import torch
from torch import Tensor


def interval(values: Tensor, weight: Tensor | None = None, share: float = 0.9) -> Tensor:
    """The two quantiles between which the middle `share` of a distribution lies, from draws of it.

    The quantile p is the order statistic p·(n + 1) of n draws, interpolated: on average a share p of the distribution
    lies below it (Weibull's plotting position, type 6 of Hyndman and Fan 1996). NumPy's default, position
    (n − 1)·p + 1, gives intervals that are too narrow: of a hundred draws, 88.2 % lie between 5 % and 95 %, not 90 %.
    With weights w, n is the effective number of draws, 1/Σw².

    Args:
        values: draws, ``[subject, sample, ...]``; NaN is left out.
        weight: weights of the draws, not negative, ``[subject, sample]``; None for equal weights.
        share: probability of the interval, between 0 and 1.

    Returns:
        Lower and upper end, ``[2, subject, ...]``; NaN where every draw is NaN. Ends beyond the outermost draw are the
        outermost draw.
    """
    weight = values.new_ones(values.shape[:2]) if weight is None else weight.to(values.dtype)
    weight = weight.reshape(*weight.shape, *[1] * (values.dim() - 2)).expand(values.shape)
    weight = torch.where(values.isnan(), 0.0, weight)
    weight = weight / weight.sum(1, keepdim=True)
    ranked, order = values.sort(dim=1)  # NaN comes last
    sorted_weight = weight.gather(1, order)
    position = sorted_weight.cumsum(1) - sorted_weight / 2
    count = 1.0 / sorted_weight.square().sum(1, keepdim=True)
    last = (~ranked.isnan()).sum(1, keepdim=True) - 1
    ends = []
    for p in ((1 - share) / 2, (1 + share) / 2):
        wanted = (p * (count + 1) - 0.5) / count
        above = (position < wanted).sum(1, keepdim=True)
        low, high = (above - 1).clamp(min=0), torch.minimum(above, last).clamp(min=0)
        low = torch.minimum(low, high)
        left, right = position.gather(1, low), position.gather(1, high)
        part = ((wanted - left) / (right - left)).nan_to_num(0.0).clamp(0.0, 1.0)
        ends.append(torch.lerp(ranked.gather(1, low), ranked.gather(1, high), part)[:, 0])
    return torch.stack(ends)

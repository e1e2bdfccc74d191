"""Counter-based random numbers: the same key gives the same number on any device, in any batch, with any worker.

A stateful generator ties a number to everything drawn before it, so a cohort split over two devices, a different
number of loader workers or a resumed run changes the result. Here every number is a hash of
``(seed, stream, subject, position)``, and nothing has to be stored in a checkpoint.
"""

import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer: the increment of splitmix64
_HALVINGS = 10  # of a cell of a Brownian motion


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch shifts arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), in wrapping 64-bit arithmetic."""
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def uniform(seed: int, stream: int, subject: Tensor, size: int) -> Tensor:
    """Uniform numbers in (0, 1), float64.

    Args:
        seed: seed of the experiment.
        stream: what the numbers are for, and when: a step, an epoch, a hash of both.
        subject: integer key of each subject, ``[subject]``.
        size: how many numbers each subject gets.

    Returns:
        ``[subject, size]``, a pure function of the arguments row by row.
    """
    position = torch.arange(size, device=subject.device, dtype=torch.int64)
    return _uniform_at(seed, stream, subject[:, None], position)


def normal(seed: int, stream: int, subject: Tensor, size: int) -> Tensor:
    """Standard normal numbers, float64, ``[subject, size]``; arguments as for `uniform`."""
    return _quantile(uniform(seed, stream, subject, size))


def systematic(weight: Tensor, count: int, offset: Tensor | float = 0.5) -> Tensor:
    """Which of weighted draws stand for all of them, by systematic resampling (Kitagawa 1996).

    Args:
        weight: 0 or more, ``[subject, sample]``.
        count: how many are to stand for them, all with the same weight.
        offset: in [0, 1), ``[subject, 1]`` or the same for all; uniform, it leaves means without bias.

    Returns:
        Their places, integer ``[subject, count]``.
    """
    ends = weight.double().cumsum(1)
    at = (torch.arange(count, device=ends.device) + offset) / count * ends[:, -1:]
    return torch.searchsorted(ends, at).clamp(max=weight.shape[1] - 1)


def brownian(seed: int, stream: int, subject: Tensor, times: Tensor, channels: int, cell: float) -> Tensor:
    """A Brownian motion of every subject, read at any times: a path is a function of the seed and the subject alone.

    The path is drawn at the multiples of `cell`, and between them by halving (Lévy's construction), down to a
    thousandth of it; what else is asked for, and in which batch, changes nothing.

    Args:
        seed: seed of the experiment.
        stream: what the path is for.
        subject: integer key of each subject, ``[subject]``.
        times: 0 or later, ``[subject, time]``.
        channels: how many independent motions each subject has.
        cell: about the time between two readings.

    Returns:
        W with W(0) = 0 and variance t, float64, ``[subject, time, channel]``.
    """
    place = (times.double() / cell)[..., None]
    whole = place.floor().long()
    channel = torch.arange(channels, device=subject.device)

    def drawn(cells: Tensor, node: Tensor | int) -> Tensor:
        position = ((cells << _HALVINGS) + node) * channels + channel
        return _quantile(_uniform_at(seed, stream, subject[:, None, None], position))

    cells = torch.arange(int(whole.max()) + 1, device=subject.device)[None, :, None]
    walk = torch.nn.functional.pad(math.sqrt(cell) * drawn(cells, 0).cumsum(1), (0, 0, 1, 0))
    left, right = (walk.gather(1, (whole + k).expand(-1, -1, channels)) for k in (0, 1))
    rest, node, width = place - whole, torch.ones_like(whole), cell
    for _ in range(_HALVINGS):
        middle = (left + right) / 2 + math.sqrt(width / 4) * drawn(whole, node)
        later = rest >= 0.5
        left, right = torch.where(later, middle, left), torch.where(later, right, middle)
        rest, node, width = 2 * rest - later.double(), 2 * node + later.long(), width / 2
    return left + (right - left) * rest


def _uniform_at(seed: int, stream: int, subject: Tensor, position: Tensor) -> Tensor:
    key = _mix(_mix(torch.tensor(seed, device=subject.device) + _GOLDEN) + stream * 2 + 1)
    bits = _mix(_mix(key + subject * _GOLDEN) + position * _GOLDEN)
    # 52 bits, which leave room for a half: with it neither 0 nor 1 occurs and the normal quantile stays finite
    return (_shift(bits, 12).double() + 0.5) / 2**52


def _quantile(u: Tensor) -> Tensor:
    """Of the standard normal distribution."""
    return math.sqrt(2.0) * torch.erfinv(2.0 * u - 1.0)

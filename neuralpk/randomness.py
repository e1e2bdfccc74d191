"""Counter-based random numbers: the same key gives the same number on any device, in any batch, with any worker.

A stateful generator ties a number to everything drawn before it, so a cohort split over two devices, a different
number of loader workers or a resumed run changes the result. Here every number is a hash of
``(seed, stream, subject, position)``, and nothing has to be stored in a checkpoint.
"""

from __future__ import annotations

import enum
import math

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer: the increment of splitmix64
_HALVINGS = 10  # of a cell of a Brownian motion
_WIDTH = 40  # bits of a step within a stream
_OCCURRENCE = 32  # bits of a subject's index in the key of its paths


class Stream(enum.IntEnum):
    """What random numbers are for. Two streams have no number in common, so that one seed serves them all.

    The streams of a simulated cohort hold one set of numbers for each subject. Every other stream has a range of its
    own, 2^40 long, with one set for each step of a training, pass over the data or draw: ``Stream.TRAINING.at(step)``.
    """

    # of simulated cohorts; another number would make another cohort of the same seed
    ETA = 0
    COVARIATES = 1
    TIMES = 3
    JITTER = 4
    RESIDUAL = 5
    POPULATION = 6
    PATH = 7
    KAPPA = 8
    # of data modules; the numbers of SPLIT and ORDER are those of the whole cohort, under the key 0
    SPLIT = 2 << _WIDTH
    ORDER = 3 << _WIDTH
    CONTEXT = 8 << _WIDTH
    # of objectives: draws of z, paths, residual errors of simulated patients, draws of the population's estimator and
    # those that its proposals adapt to
    TRAINING = 4 << _WIDTH
    TRAINING_PATHS = 5 << _WIDTH
    SIMULATED_PATIENTS = 16 << _WIDTH
    ESTIMATION = 17 << _WIDTH
    PROPOSALS = 18 << _WIDTH
    EVALUATION = 32 << _WIDTH
    EVALUATION_PATHS = 33 << _WIDTH
    # of trained models
    INTERVALS = 1 << _WIDTH
    PARAMETER_DRAWS = 65 << _WIDTH
    REPLICATES = 128 << _WIDTH
    POSTERIOR_PATHS = 256 << _WIDTH
    TEMPERING = 257 << _WIDTH
    BOOTSTRAP = 258 << _WIDTH
    EVALUATED = 259 << _WIDTH
    SIMULATED_COURSES = 260 << _WIDTH
    # of what stands outside this package
    SCRIPT = 512 << _WIDTH

    @property
    def size(self) -> int:
        """How many steps it has."""
        return 1 if self < 1 << _WIDTH else 1 << _WIDTH

    @classmethod
    def of(cls, number: int) -> Stream:
        """The stream that a number from `at` belongs to.

        Raises:
            ValueError: a number of no stream.
        """
        return cls(number if number < 1 << _WIDTH else number >> _WIDTH << _WIDTH)

    def at(self, step: int) -> int:
        """The numbers of a step, from 0.

        Raises:
            ValueError: a step that the stream does not have; it would use the numbers of another stream.
        """
        if not 0 <= step < self.size:
            raise ValueError(f"the stream {self.name} of random numbers has steps 0 to {self.size - 1}, not {step}")
        return self.value + step


def later(stream: int, steps: int) -> int:
    """The numbers that come some steps after those of ``Stream.….at(step)``.

    Raises:
        ValueError: beyond the end of the stream.
    """
    of = Stream.of(stream)
    return of.at(stream - of + steps)


def path_key(index: Tensor, occurrence: Tensor | int) -> Tensor:
    """Key of one of several paths of a subject, in a stream of paths alone; the first has the key of the subject.

    Args:
        index: of each subject, from 0 and below 2^32, ``[subject]``.
        occurrence: which of its paths, from 0; −1 for what selects among them.
    """
    return index + (occurrence << _OCCURRENCE)


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
        stream: what the numbers are for, and when: ``Stream.TRAINING.at(step)``.
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


def sobol(count: int, size: int) -> Tensor:
    """The first points of the Sobol sequence in [0, 1)^size, float64, ``[point, size]``; the first is 0."""
    engine = torch.quasirandom.SobolEngine(size)  # type: ignore[no-untyped-call]
    points: Tensor = engine.draw(count, dtype=torch.float64)
    return points


def quasi_uniform(seed: int, stream: int, subject: Tensor, count: int, size: int, part: int = 0) -> Tensor:
    """Quasi-random points in (0, 1)^size: a Sobol sequence, shifted for every subject by random numbers of its own
    (Cranley and Patterson 1976). A mean over them is without bias and closer than over random points.

    Args:
        seed: seed of the experiment.
        stream: as for `uniform`.
        subject: integer key of each subject, ``[subject]``.
        count: how many points each subject gets.
        size: dimensions of a point.
        part: of several sets of points with different shifts, which one.

    Returns:
        float64, ``[subject, count, size]``.
    """
    points = sobol(count, size).to(subject.device)
    shift = uniform(seed, stream, subject, (part + 1) * size)[:, part * size :]
    return ((points + shift[:, None]) % 1.0).clamp(1e-12, 1 - 1e-12)


def systematic(weight: Tensor, count: int, offset: Tensor | float = 0.5) -> Tensor:
    """Indices of draws of equal weight that represent weighted draws: systematic resampling (Kitagawa 1996).

    Args:
        weight: 0 or more, ``[subject, sample]``.
        count: how many are chosen, each with the same weight.
        offset: in [0, 1), ``[subject, 1]`` or the same for all; a uniform random one leaves means without bias.

    Returns:
        Indices along the axis of the samples, integer ``[subject, count]``.
    """
    ends = weight.double().cumsum(1)
    at = (torch.arange(count, device=ends.device) + offset) / count * ends[:, -1:]
    return torch.searchsorted(ends, at).clamp(max=weight.shape[1] - 1)


def brownian(seed: int, stream: int, subject: Tensor, times: Tensor, channels: int, cell: float) -> Tensor:
    """A Brownian motion of every subject at any times: the path depends on the seed, stream and subject alone.

    The path is drawn at the multiples of `cell`, and between them by halving (Lévy's construction), down to a
    thousandth of it. Neither the other times nor the other subjects of a batch change it.

    Args:
        seed: seed of the experiment.
        stream: as for `uniform`.
        subject: integer key of each subject, ``[subject]``.
        times: 0 or later, ``[subject, time]``.
        channels: how many independent motions each subject has.
        cell: about the time between two readings.

    Returns:
        W with W(0) = 0 and variance t, float64, ``[subject, time, channel]``.
    """
    position = (times.double() / cell)[..., None]
    whole = position.floor().long()
    channel = torch.arange(channels, device=subject.device)

    def drawn(cells: Tensor, node: Tensor | int) -> Tensor:
        number = ((cells << _HALVINGS) + node) * channels + channel
        return _quantile(_uniform_at(seed, stream, subject[:, None, None], number))

    cells = torch.arange(int(whole.max()) + 1, device=subject.device)[None, :, None]
    walk = torch.nn.functional.pad(math.sqrt(cell) * drawn(cells, 0).cumsum(1), (0, 0, 1, 0))
    left, right = (walk.gather(1, (whole + k).expand(-1, -1, channels)) for k in (0, 1))
    rest, node, width = position - whole, torch.ones_like(whole), cell
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

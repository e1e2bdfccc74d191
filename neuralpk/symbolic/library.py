"""Terms out of which an equation may be made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import combinations_with_replacement

import torch
from torch import Tensor


@dataclass(frozen=True)
class Library:
    """Monomials of the states up to a total degree, the constant among them, and the sine of every state.

    Args:
        symbols: what the states are called in an equation, such as ("x", "y").
        degree: highest total degree of a monomial.
        sines: whether sin(x) of every state is there.

    Raises:
        ValueError: no state, or a degree below 0.
    """

    symbols: tuple[str, ...]
    degree: int = 5
    sines: bool = True

    def __post_init__(self) -> None:
        if not self.symbols or self.degree < 0:
            raise ValueError(f"a library needs states and a degree of at least 0, got {self.symbols}, {self.degree}")

    @cached_property
    def exponents(self) -> tuple[tuple[int, ...], ...]:
        """The power of each state in each monomial."""
        chosen = [
            factors
            for degree in range(self.degree + 1)
            for factors in combinations_with_replacement(range(len(self.symbols)), degree)
        ]
        return tuple(tuple(factors.count(k) for k in range(len(self.symbols))) for factors in chosen)

    @cached_property
    def _powers(self) -> tuple[list[int], ...]:
        """The power in each monomial, of each state."""
        return tuple([row[k] for row in self.exponents] for k in range(len(self.symbols)))

    @cached_property
    def terms(self) -> tuple[str, ...]:
        """The terms as they are written, in the order of their values: 1, x, y, x², x·y, …, sin(x), sin(y)."""
        monomials = [
            "·".join(_power(*pair) for pair in zip(self.symbols, row, strict=True) if pair[1]) or "1"
            for row in self.exponents
        ]
        return (*monomials, *(f"sin({symbol})" for symbol in self.symbols if self.sines))

    def values(self, y: Tensor) -> Tensor:
        """Every term, ``[..., term]`` for y ``[..., state]``."""
        powers = [torch.ones_like(y), y]
        for _ in range(1, self.degree):
            powers.append(powers[-1] * y)
        every = torch.stack(powers[: self.degree + 1], dim=-1)
        # few operations on whole arrays: sensitivities go through this function often
        factors = (every[..., k, powers] for k, powers in enumerate(self._powers))
        monomials = reduce(torch.mul, factors)
        return torch.cat([monomials, y.sin()], dim=-1) if self.sines else monomials


def _power(symbol: str, power: int) -> str:
    return symbol if power == 1 else symbol + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(digit)] for digit in str(power))

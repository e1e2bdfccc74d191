"""Intervals from draws hold the share that they say."""

import math

import pytest
import torch

from neuralpk.inference.quantiles import interval


@pytest.mark.parametrize("draws", [20, 100, 399])
def test_an_interval_of_equal_draws_holds_its_share_in_the_mean(draws: int) -> None:
    generator = torch.Generator().manual_seed(draws)
    values = torch.rand((20_000, draws), generator=generator, dtype=torch.float64)
    low, high = interval(values)
    # of uniform draws the share that lies between two places is their distance; its standard error is below .0005
    assert float((high - low).mean()) == pytest.approx(0.9, abs=0.002)
    assert float(low.mean()) == pytest.approx(0.05, abs=0.001)
    inner = values.quantile(torch.tensor([0.05, 0.95], dtype=torch.float64), dim=1)
    assert float((inner[1] - inner[0]).mean()) == pytest.approx(0.9 * (draws - 1) / (draws + 1), abs=0.002)


def test_weighted_draws_hold_their_share_nearly() -> None:
    # N(0, 1) from draws of N(0, 1.3²); 200 of them, about 160 effective
    generator = torch.Generator().manual_seed(0)
    values = 1.3 * torch.randn((20_000, 200), generator=generator, dtype=torch.float64)
    weight = torch.exp(0.5 * values.square() * (1.3**-2 - 1.0))
    low, high = interval(values, weight)
    content = torch.special.ndtr(high) - torch.special.ndtr(low)
    assert float(content.mean()) == pytest.approx(0.9, abs=0.004)


def test_weights_count_as_copies_do() -> None:
    # the same ends whether a draw comes twice or weighs twice, but for the number of draws that this is taken for
    values = torch.arange(2000.0, dtype=torch.float64)[None]
    weight = torch.where(values < 1000, 2.0, 1.0)
    copies = torch.cat([values, values[:, :1000]], dim=1)
    torch.testing.assert_close(interval(values, weight), interval(copies), atol=2.0, rtol=0)


def test_a_draw_that_is_not_there_does_not_count() -> None:
    values = torch.rand((3, 40, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gaps = torch.cat([torch.full((3, 7, 2), torch.nan, dtype=torch.float64), values], dim=1)
    torch.testing.assert_close(interval(gaps), interval(values))
    nobody = interval(torch.full((1, 5), math.nan))
    assert bool(nobody.isnan().all())


def test_few_draws_have_their_outermost_as_ends() -> None:
    assert interval(torch.tensor([[3.0, 1.0, 2.0]])).tolist() == [[1.0], [3.0]]
    assert interval(torch.tensor([[3.0]])).tolist() == [[3.0], [3.0]]

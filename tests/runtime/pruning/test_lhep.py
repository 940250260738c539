"""Haar energy and the choice of tokens, against direct computations on any input."""

from __future__ import annotations

import pytest
import torch
from helpers.naive import choose, energy_map
from helpers.naive import haar_energy as direct_haar_energy
from hypothesis import given, settings
from hypothesis import strategies as st
from ldp_runtime.pruning import lhep

grids = st.tuples(st.integers(1, 13), st.integers(1, 13))


def random_codes(channels: int, grid: tuple[int, int], seed: int, binary: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if binary:
        return ((torch.rand(channels, *grid, generator=generator) < 0.5).float() * 2 - 1) / channels**0.5
    return torch.randn(channels, *grid, generator=generator) * 3


@given(st.integers(1, 40), grids, st.integers(0, 10**6), st.booleans())
def test_haar_energy_is_that_of_the_three_bands(channels: int, grid: tuple[int, int], seed: int, binary: bool) -> None:
    codes = random_codes(channels, grid, seed, binary)
    energy = lhep.haar_energy(codes)
    assert energy.shape == ((grid[0] + 1) // 2, (grid[1] + 1) // 2)
    torch.testing.assert_close(energy.double(), direct_haar_energy(codes), rtol=1e-5, atol=2e-5)
    assert (energy >= 0).all()


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 8), st.integers(0, 10**6))
def test_unit_codes_have_the_short_form(channels: int, h: int, w: int, seed: int) -> None:
    """4 (1 - ||mean||^2) for codes of norm 1: between 0 and 4."""
    codes = random_codes(channels, (2 * h, 2 * w), seed, binary=True)
    mean = codes.unflatten(2, (w, 2)).unflatten(1, (h, 2)).mean(dim=(2, 4))
    torch.testing.assert_close(lhep.haar_energy(codes), 4 * (1 - mean.square().sum(dim=0)), rtol=1e-5, atol=1e-5)


def test_hand_computed_patch() -> None:
    """One channel (1, 2; 3, 6): LH 2, HL 3, HH 1."""
    assert lhep.haar_energy(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])).item() == 4 + 9 + 1


@given(st.sampled_from([8, 14, 16, 20, 24, 32, 56]), grids, st.integers(0, 10**6), st.booleans())
def test_flat_maps_have_exactly_no_energy_and_keep_nothing(
    channels: int, grid: tuple[int, int], seed: int, binary: bool
) -> None:
    """Exactly: a rounding error of 1e-9 would keep half of its tokens."""
    flat = random_codes(channels, (1, 1), seed, binary).expand(-1, *grid)
    energy = lhep.haar_energy(flat)
    assert (energy == 0).all()
    score = lhep.to_grid(lhep.smooth(energy), (grid[0] + 3, grid[1] + 1))
    assert lhep.keep_by_energy(score, 0.5).numel() == 0


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
def test_smoothing_averages_nine_and_counts_the_padding(h: int, w: int, seed: int) -> None:
    energy = torch.rand(h, w, generator=torch.Generator().manual_seed(seed))
    expected = torch.nn.functional.conv2d(energy[None, None], torch.full((1, 1, 3, 3), 1 / 9), padding=1)[0, 0]
    torch.testing.assert_close(lhep.smooth(energy), expected)


@settings(max_examples=50)
@given(st.integers(1, 32), grids, st.integers(0, 4), st.integers(0, 4), st.integers(0, 10**6), st.booleans())
def test_score_map(channels: int, grid: tuple[int, int], more_h: int, more_w: int, seed: int, counted: bool) -> None:
    codes, target = random_codes(channels, grid, seed, binary=True), (grid[0] + more_h, grid[1] + more_w)
    score = lhep.to_grid(lhep.smooth(lhep.haar_energy(codes), counted), target)
    expected = energy_map(codes, target, "counted" if counted else "ignored")
    torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=1e-5)


energies = st.lists(st.floats(0, 100, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)
shares = st.floats(0.01, 1.0)


@given(energies, shares)
def test_kept_tokens_are_the_fewest_that_reach_the_share(values: list[float], rho: float) -> None:
    energy = torch.tensor([values])
    kept = lhep.keep_by_energy(energy, rho)
    total = energy.double().sum().item()
    if total == 0:
        assert kept.numel() == 0
        return
    assert kept.tolist() == sorted(set(kept.tolist()))
    chosen = energy.double().flatten()[kept]
    assert chosen.sum() >= rho * total * (1 - 1e-9)
    assert chosen.sum() - chosen.min() <= rho * total * (1 + 1e-9)  # one fewer would not do
    others = [v for i, v in enumerate(values) if i not in set(kept.tolist())]
    assert max(others, default=0.0) <= float(chosen.min()) + 1e-12


@given(energies, shares, shares)
def test_larger_shares_keep_supersets(values: list[float], a: float, b: float) -> None:
    energy = torch.tensor([values])
    fewer, more = (set(lhep.keep_by_energy(energy, rho).tolist()) for rho in sorted((a, b)))
    assert fewer <= more


@given(st.integers(1, 200), shares)
def test_ties_keep_exactly_the_promised_count(tokens: int, rho: float) -> None:
    """All equal: the share of the tokens, rounded up; the first in raster order."""
    kept = lhep.keep_by_energy(torch.full((1, tokens), 0.3), rho)
    exact = rho * tokens
    assert kept.numel() in {int(exact * (1 - 1e-9) - 1e-9) + 1, int(exact * (1 - 1e-6)) + 1}
    assert kept.tolist() == list(range(kept.numel()))


def test_single_tokens_and_whole_shares() -> None:
    assert lhep.keep_by_energy(torch.tensor([[2.0]]), 0.5).tolist() == [0]
    assert lhep.keep_by_energy(torch.tensor([[0.0]]), 0.5).tolist() == []
    assert lhep.keep_by_energy(torch.tensor([[1.0, 0.0, 3.0]]), 1.0).tolist() == [0, 2]
    assert lhep.keep_by_energy(torch.tensor([[1.0, 5.0], [2.0, 2.0]]), 0.5).tolist() == [1]
    assert lhep.keep_by_energy(torch.tensor([[1.0, 5.0], [2.0, 2.0]]), 0.51).tolist() == [1, 2]


@given(energies, shares)
def test_selection_equals_the_plain_loop(values: list[float], rho: float) -> None:
    energy = torch.tensor([values], dtype=torch.float64)
    got, expected = lhep.keep_by_energy(energy, rho), choose(energy, rho)
    assert abs(len(got) - len(expected)) <= 1  # the share itself may be met up to rounding
    assert set(got.tolist()) <= set(expected) or set(expected) <= set(got.tolist())


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_keep_by_rank(count: int) -> None:
    score = torch.tensor([[0.1, 0.9], [0.9, 0.4]])
    assert lhep.keep_by_rank(score, count).tolist() == sorted([1, 2, 3, 0][:count])

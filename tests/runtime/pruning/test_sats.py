"""When the guidance gap has settled: hand-computed examples and properties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime.guidance import gap_per_token
from ldp_runtime.pruning.sats import GuidanceGap, change


def gap(grid: tuple[int, int], values: list[float], kept: list[int] | None = None, bits: int = 4) -> GuidanceGap:
    return GuidanceGap(grid, torch.tensor(values), None if kept is None else torch.tensor(kept, dtype=torch.long), bits)


def test_gap_is_the_mean_square_over_bits() -> None:
    cond, uncond = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 5.0], [0.0, 2.0]])
    assert gap_per_token(cond, uncond).tolist() == [5.0, 2.0]


def test_full_scales() -> None:
    """RMS 2 then 3: a change of a half. Raw norms: sqrt(1*4*4) = 4 and sqrt(4*4*9) = 12: a change of two."""
    before, now = gap((1, 1), [4.0]), gap((2, 2), [9.0] * 4)
    assert change(before, now) == pytest.approx(0.5, rel=1e-5)
    assert change(before, now, norm="l2") == pytest.approx(2.0, rel=1e-5)


def test_pruned_scale_is_compared_on_its_own_region() -> None:
    """Kept tokens 0 and 1 of a 2x4 grid lie over token 0 of the 1x2 grid; token 1 there does not count."""
    before, now = gap((1, 2), [4.0, 100.0]), gap((2, 4), [9.0, 9.0], kept=[0, 1])
    assert change(before, now) == pytest.approx(0.5, rel=1e-5)


def test_places_pruned_at_the_scale_before_do_not_count() -> None:
    before, now = gap((1, 2), [4.0], kept=[1]), gap((1, 4), [1.0, 1.0, 16.0, 16.0])
    assert change(before, now) == pytest.approx(1.0, rel=1e-5)  # 2 -> 4 over the right half


def test_nothing_in_common() -> None:
    before, now = gap((1, 2), [4.0], kept=[0]), gap((1, 4), [9.0], kept=[3])
    assert change(before, now) is None
    assert change(gap((1, 2), [], kept=[]), gap((1, 4), [9.0] * 4)) is None


def test_a_branch_that_starts_from_no_gap() -> None:
    assert change(gap((1, 1), [0.0]), gap((1, 1), [0.0])) == 0.0
    changed = change(gap((1, 1), [0.0]), gap((1, 1), [1.0]))
    assert changed is not None
    assert changed > 1e5


def test_rms() -> None:
    assert gap((1, 2), [9.0, 7.0]).rms == pytest.approx(8**0.5)
    assert gap((1, 2), [], kept=[]).rms == 0.0


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 3), st.floats(0.5, 2.0), st.data())
def test_gap_that_only_scales_changes_by_that_much(
    h: int, w: int, more_h: int, more_w: int, factor: float, data: st.DataObject
) -> None:
    """The same map, up-sampled and multiplied: whatever is kept, the change is |factor - 1|."""
    old = torch.rand(h, w, generator=torch.Generator().manual_seed(h * 10 + w)) + 0.1
    H, W = h + more_h, w + more_w
    new = torch.nn.functional.interpolate(old[None, None], (H, W), mode="nearest")[0, 0] * factor**2
    kept = sorted(data.draw(st.sets(st.integers(0, H * W - 1), min_size=1)))
    changed = change(gap((h, w), old.flatten().tolist()), gap((H, W), new.flatten()[kept].tolist(), kept))
    assert changed == pytest.approx(abs(factor - 1), abs=1e-4)

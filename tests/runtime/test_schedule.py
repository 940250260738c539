"""Scale schedules against the released models' tables."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime.errors import ConfigError, InternalError
from ldp_runtime.schedule import SCALES_OF_SIZE, TEMPLATES, ScaleSchedule, nearest_template, rope_table

#: ratio -> tokens and final pixel sizes at 0.06M, 0.25M, 0.6M, 1M.
TABLE = {
    1.0: ("521/2521/6425/10521", "256x256 512x512 768x768 1024x1024"),
    1.25: ("614/2814/6854/10774", "320x256 560x448 880x704 1120x896"),
    1.333: ("665/2657/7085/10973", "320x240 576x432 960x720 1152x864"),
    1.5: ("533/2759/6941/10997", "336x224 624x416 1008x672 1248x832"),
    1.75: ("472/2628/7220/11252", "336x192 672x384 1120x640 1344x768"),
    2.0: ("451/2681/7219/11269", "352x176 736x368 1184x592 1440x720"),
    2.5: ("555/2555/6805/10805", "400x160 800x320 1280x512 1600x640"),
    3.0: ("509/2588/7016/11123", "432x144 864x288 1440x480 1776x592"),
}
SWAPPED = {1.25: 0.8, 1.333: 0.75, 1.5: 0.666, 1.75: 0.571, 2.0: 0.5, 2.5: 0.4, 3.0: 0.333}


def test_templates_are_the_originals() -> None:
    order = [1.0, 1.25, 0.8, 1.333, 0.75, 1.5, 0.666, 1.75, 0.571, 2.0, 0.5, 2.5, 0.4, 3.0, 0.333]
    assert list(TEMPLATES) == order
    assert all(len(grids) == 13 for grids in TEMPLATES.values())


@pytest.mark.parametrize("ratio", TABLE)
def test_tokens_and_pixels(ratio: float) -> None:
    schedules = [ScaleSchedule.of_size(size, ratio) for size in SCALES_OF_SIZE]
    tokens, pixels = TABLE[ratio]
    assert "/".join(str(s.total_tokens) for s in schedules) == tokens
    assert " ".join(f"{s.final_grid[0] * 16}x{s.final_grid[1] * 16}" for s in schedules) == pixels
    assert [len(s) for s in schedules] == [7, 10, 12, 13]


@pytest.mark.parametrize(("tall", "wide"), SWAPPED.items())
def test_wide_templates_are_tall_ones_swapped(tall: float, wide: float) -> None:
    a, b = ScaleSchedule.of_size("1M", tall), ScaleSchedule.of_size("1M", wide)
    assert b.grids == tuple((w, h) for h, w in a.grids)
    assert b.tokens == a.tokens
    assert b.position_grid == a.position_grid[::-1]


def test_square_1m_tokens() -> None:
    schedule = ScaleSchedule.of_size("1M")
    assert schedule.tokens == (1, 4, 16, 36, 64, 144, 256, 400, 576, 1024, 1600, 2304, 4096)
    assert schedule.offsets[-2:] == (6425, 10521)
    assert schedule.detail_scales() == (10, 11, 12)


@pytest.mark.parametrize("ratio", TEMPLATES)
@pytest.mark.parametrize("size", SCALES_OF_SIZE)
def test_detail_scales_are_the_fewest_that_hold_three_quarters(ratio: float, size: str) -> None:
    schedule = ScaleSchedule.of_size(size, ratio)
    detail = schedule.detail_scales()
    share = sum(schedule.tokens[k] for k in detail)
    assert detail[-1] == len(schedule) - 1
    assert share >= 0.75 * schedule.total_tokens > share - schedule.tokens[detail[0]]


@pytest.mark.parametrize("ratio", TEMPLATES)
def test_positions_are_exact_halves_to_even(ratio: float) -> None:
    """Against exact rational arithmetic: Python rounds fractions half to even."""
    schedule = ScaleSchedule.of_size("1M", ratio)
    for k, (h, w) in enumerate(schedule.grids):
        ys, xs = schedule.positions(k)
        expected_y = [round(Fraction(i * schedule.position_grid[0], h)) for i in range(h)]
        expected_x = [round(Fraction(j * schedule.position_grid[1], w)) for j in range(w)]
        assert ys.view(h, w)[:, 0].tolist() == expected_y
        assert xs.view(h, w)[0].tolist() == expected_x


def test_rounding_ties_exist_and_go_to_even() -> None:
    """2.0 at scale 1: rows 0 and 45, columns 0 and 22.5, which is 22."""
    ys, xs = ScaleSchedule.of_size("0.06M", 2.0).positions(1)
    assert (ys.tolist(), xs.tolist()) == ([0, 0, 45, 45], [0, 22, 0, 22])


def test_small_schedules_measure_in_the_large_grid() -> None:
    small, large = ScaleSchedule.of_size("0.06M", 1.5), ScaleSchedule.of_size("1M", 1.5)
    for k in range(len(small)):
        assert all(torch.equal(a, b) for a, b in zip(small.positions(k), large.positions(k), strict=True))


@pytest.mark.parametrize("ratio", TEMPLATES)
def test_explicit_grids_find_their_template(ratio: float) -> None:
    for size in SCALES_OF_SIZE:
        schedule = ScaleSchedule.of_size(size, ratio)
        assert ScaleSchedule.of_grids([[1, h, w] for h, w in schedule.grids]) == schedule
    own = ScaleSchedule.of_grids([[1, 1], [3, 5]])
    assert own.position_grid == (3, 5)


@given(st.floats(0.05, 20))
def test_nearest_template(ratio: float) -> None:
    chosen = nearest_template(ratio)
    distance = abs(chosen - ratio)
    assert all(distance <= abs(other - ratio) for other in TEMPLATES)
    assert chosen == next(other for other in TEMPLATES if abs(other - ratio) == distance)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_ratios(ratio: float) -> None:
    with pytest.raises(ConfigError, match="aspect ratio"):
        ScaleSchedule.of_size("1M", ratio)


def test_bad_schedules() -> None:
    with pytest.raises(ConfigError, match=r"0\.06M"):
        ScaleSchedule.of_size("2M")
    with pytest.raises(ConfigError, match="shrink"):
        ScaleSchedule(((2, 2), (1, 4)), (2, 4))
    with pytest.raises(ConfigError, match="at least one"):
        ScaleSchedule((), (1, 1))
    with pytest.raises(InternalError, match="divisible by 4"):
        rope_table(ScaleSchedule.of_size("0.06M"), 6)

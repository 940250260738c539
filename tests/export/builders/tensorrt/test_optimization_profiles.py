"""The profile of a call is a pure function of its sizes: every call of the loop is covered, others are refused."""

from __future__ import annotations

import pytest
from helpers.schedules import all_schedules
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime.bundle.optimization_profiles import AxisRange, OptimizationProfile, choose_profile
from ldp_runtime.errors import CapacityError, ConfigError, InternalError
from ldp_runtime.schedule import SCALES_OF_SIZE, TEMPLATES, ScaleSchedule
from ldp_runtime.token_layout import LatentLayout

from ldp_export.builders.tensorrt.optimization_profiles import (
    buckets_of,
    latent_profiles,
    scale_profiles,
)

TEXT = 512

sizes = st.sampled_from(list(SCALES_OF_SIZE))


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, int, int, dict[str, int]]:
    """A size, a number of buckets, a scale, and a call of that scale: any template, pruned anywhere, any rows, text."""
    size = draw(sizes)
    schedule = ScaleSchedule.of_size(size, draw(st.sampled_from(list(TEMPLATES))))
    scale = draw(st.integers(0, len(schedule) - 1))
    rows = draw(st.integers(1, 8))
    call = {
        "tokens": draw(st.integers(1, schedule.tokens[scale])),
        "past": draw(st.integers(0, schedule.offsets[scale])),
        "rows": rows,
        "text": draw(st.integers(1, TEXT)),
    }
    return size, draw(st.integers(1, len(schedule))), scale, call


class TestCoverage:
    @given(calls())
    def test_every_call_of_every_template_is_covered(self, drawn: tuple[str, int, int, dict[str, int]]) -> None:
        size, buckets, scale, call = drawn
        profiles = scale_profiles(all_schedules(size), buckets, 8, TEXT)
        chosen = profiles[choose_profile(profiles, call, "blocks")]
        assert chosen.covers(call)
        assert chosen.scales is not None
        assert chosen.scales[0] <= scale  # a pruned late call may fit an earlier bucket, never the other way round

    @pytest.mark.parametrize("size", SCALES_OF_SIZE)
    @pytest.mark.parametrize("buckets", [1, 2, 3, 7])
    def test_full_calls_at_the_limits(self, size: str, buckets: int) -> None:
        profiles = scale_profiles(all_schedules(size), buckets, 8, TEXT)
        for schedule in all_schedules(size):
            for k in range(len(schedule)):
                call = {"tokens": schedule.tokens[k], "past": schedule.offsets[k], "rows": 8, "text": TEXT}
                first, last = profiles[choose_profile(profiles, call, "blocks")].scales or (-1, -1)
                assert first <= k <= last or profiles[0].covers(call)

    @given(calls(), st.sampled_from(["tokens", "past", "rows", "text"]), st.integers(1, 10**6))
    def test_what_was_not_built_for_is_refused(
        self, drawn: tuple[str, int, int, dict[str, int]], axis: str, excess: int
    ) -> None:
        size, buckets, _, call = drawn
        profiles = scale_profiles(all_schedules(size), buckets, 8, TEXT)
        largest = max(profile.axes[axis].largest for profile in profiles)
        with pytest.raises(CapacityError, match=f"'blocks' was not built for .*{axis} {largest + excess}"):
            choose_profile(profiles, call | {axis: largest + excess}, "blocks")

    @given(calls(), st.sampled_from(["tokens", "rows", "text"]))
    def test_nothing_is_refused_as_well(self, drawn: tuple[str, int, int, dict[str, int]], axis: str) -> None:
        size, buckets, _, call = drawn
        profiles = scale_profiles(all_schedules(size), buckets, 8, TEXT)
        with pytest.raises(CapacityError):
            choose_profile(profiles, call | {axis: 0}, "blocks")

    @given(sizes, st.sampled_from([LatentLayout(32, 1), LatentLayout(14, 2)]))
    def test_every_picture_is_covered(self, size: str, layout: LatentLayout) -> None:
        profiles = latent_profiles(all_schedules(size), layout)
        for schedule in all_schedules(size):
            h, w = layout.latent_grid(schedule.final_grid)
            assert profiles[choose_profile(profiles, {"images": 1, "height": h, "width": w}, "decoder")]


class TestChoice:
    def test_the_tightest_is_chosen(self) -> None:
        small, large = (OptimizationProfile({"tokens": AxisRange(1, n, n)}) for n in (16, 64))
        for profiles, expected in (((small, large), 0), ((large, small), 1)):
            assert choose_profile(profiles, {"tokens": 16}, "x") == expected
        assert choose_profile((small, large), {"tokens": 17}, "x") == 1

    def test_message_names_what_is_covered(self) -> None:
        profiles = scale_profiles(all_schedules("1M"), 3, 8, TEXT)
        with pytest.raises(CapacityError) as caught:
            choose_profile(profiles, {"tokens": 5000, "past": 0, "rows": 2, "text": 9}, "blocks")
        assert "tokens 5000" in str(caught.value)
        assert "scales 0-4: 1-108 tokens, past 0-" in str(caught.value)

    @pytest.mark.parametrize("sides", [(2, 1, 3), (1, 4, 3), (-1, 0, 3)])
    def test_senseless_ranges(self, sides: tuple[int, int, int]) -> None:
        with pytest.raises(InternalError, match="smallest <= typical <= largest"):
            AxisRange(*sides)


class TestBuckets:
    @given(st.integers(1, 20), st.data())
    def test_buckets_are_the_scales_in_order(self, scales: int, data: st.DataObject) -> None:
        found = buckets_of(scales, data.draw(st.integers(1, scales)))
        assert [k for first, last in found for k in range(first, last + 1)] == list(range(scales))
        lengths = [last - first + 1 for first, last in found]
        assert lengths == sorted(lengths, reverse=True)
        assert max(lengths) - min(lengths) <= 1

    @pytest.mark.parametrize("buckets", [0, -1, 14])
    def test_impossible_numbers(self, buckets: int) -> None:
        with pytest.raises(ConfigError, match="1 to 13 profiles"):
            buckets_of(13, buckets)

    def test_of_the_square_megapixel(self) -> None:
        early, middle, late = scale_profiles(all_schedules("1M"), 3, 8, TEXT)
        assert [p.scales for p in (early, middle, late)] == [(0, 4), (5, 8), (9, 12)]
        assert late.axes["tokens"] == AxisRange(1, 4096, 4107)
        assert late.axes["past"].largest == max(s.offsets[-2] for s in all_schedules("1M"))
        assert early.axes["tokens"].typical == 64

"""Policies: their checks, their words, and the scales they derive."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime import FixedRatio, LatentDiscrepancy, Policy, SkipLastScales, StopGuidanceAfter, parse_policy
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.controls import GivenShares
from ldp_runtime.pruning.parse import describe
from ldp_runtime.pruning.policy import ScaleView
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import SCALES_OF_SIZE, TEMPLATES, ScaleSchedule

SQUARE = ScaleSchedule.of_size("0.06M")


def view(
    residual: torch.Tensor,
    scale: int = 6,
    energy: torch.Tensor | None = None,
    computed: torch.Tensor | None = None,
    seed: int = 0,
) -> ScaleView:
    everywhere = torch.ones(residual.shape[1:], dtype=torch.bool)
    latent = torch.randn(residual.shape[0], *SQUARE.grids[scale], generator=torch.Generator().manual_seed(seed))
    return ScaleView(SQUARE, scale, residual, everywhere if computed is None else computed, energy, latent, seed)


def residual(seed: int = 0, grid: tuple[int, int] = (12, 12), channels: int = 8) -> torch.Tensor:
    draws = torch.rand(channels, *grid, generator=torch.Generator().manual_seed(seed))
    return ((draws < 0.5).float() * 2 - 1) / channels**0.5


class TestChecks:
    @pytest.mark.parametrize(
        "make",
        [
            *(lambda rho=rho: LatentDiscrepancy(rho=rho) for rho in (0.0, -0.5, 1.01, float("nan"))),
            *(lambda d=d: LatentDiscrepancy(stop_threshold=d) for d in (-0.1, float("inf"), float("nan"))),
            lambda: LatentDiscrepancy(skip_last=-1),
            lambda: LatentDiscrepancy(fill="mean"),  # type: ignore[arg-type]
            lambda: LatentDiscrepancy(energy_from="next"),  # type: ignore[arg-type]
            lambda: LatentDiscrepancy(gap="l1"),  # type: ignore[arg-type]
            lambda: SkipLastScales(-1),
            *(lambda keep=keep: FixedRatio(keep=keep) for keep in (-0.1, 1.1, float("nan"))),
            lambda: FixedRatio(score="attention"),  # type: ignore[arg-type]
            lambda: FixedRatio(fill="mean"),  # type: ignore[arg-type]
            lambda: LatentDiscrepancy(score="random"),  # type: ignore[arg-type]
            lambda: LatentDiscrepancy(border="open"),  # type: ignore[arg-type]
            *(lambda f=f: LatentDiscrepancy(fill_scale=f) for f in (float("nan"), float("inf"))),
            *(lambda f=f: FixedRatio(fill_scale=f) for f in (float("nan"), float("inf"))),
        ],
    )
    def test_senseless_numbers(self, make: Callable[[], Policy]) -> None:
        with pytest.raises(ConfigError):
            make()

    @pytest.mark.parametrize(
        "policy",
        [
            LatentDiscrepancy(prune_scales=(7,)),
            LatentDiscrepancy(prune_scales=(0,)),
            LatentDiscrepancy(prune_scales=(-1,)),
            LatentDiscrepancy(stop_scales=(7,)),
            LatentDiscrepancy(stop_scales=(0,)),
            LatentDiscrepancy(skip_last=7),
            SkipLastScales(7),
            StopGuidanceAfter(7),
            StopGuidanceAfter(-1),
            FixedRatio(prune_scales=(7,)),
        ],
        ids=str,
    )
    def test_scales_that_the_schedule_lacks(self, policy: Policy) -> None:
        with pytest.raises(ConfigError):
            policy.check(SQUARE)

    @pytest.mark.parametrize("size", SCALES_OF_SIZE)
    @pytest.mark.parametrize("ratio", TEMPLATES)
    def test_derived_scales_pass_their_own_check(self, size: str, ratio: float) -> None:
        schedule, policy = ScaleSchedule.of_size(size, ratio), LatentDiscrepancy()
        prunes, stops = policy.prunes(schedule), policy.stops(schedule)
        LatentDiscrepancy(prune_scales=prunes, stop_scales=stops).check(schedule)
        assert prunes == schedule.detail_scales()
        assert stops == (prunes[0] - 1, *prunes)
        assert policy.watches_guidance(stops[0] - 1, schedule)
        assert not policy.watches_guidance(stops[0] - 2, schedule)

    def test_paper_scales_on_the_square_1m_schedule(self) -> None:
        schedule = ScaleSchedule.of_size("1M")
        assert LatentDiscrepancy().prunes(schedule) == FixedRatio().prunes(schedule) == (10, 11, 12)
        assert LatentDiscrepancy().stops(schedule) == (9, 10, 11, 12)
        assert LatentDiscrepancy(skip_last=2).scales_to_run(schedule) == 11

    def test_parts_can_be_switched_off(self) -> None:
        assert LatentDiscrepancy(prune_scales=()).prunes(SQUARE) == ()
        off = LatentDiscrepancy(stop_threshold=None)
        assert off.stops(SQUARE) == ()
        assert not any(off.watches_guidance(k, SQUARE) for k in range(7))


scale_lists = st.none() | st.lists(st.integers(1, 6), unique=True, max_size=4).map(lambda s: tuple(sorted(s)))
policies = (
    st.builds(
        LatentDiscrepancy,
        rho=st.floats(0.01, 1.0),
        prune_scales=scale_lists,
        stop_threshold=st.none() | st.floats(0, 10),
        stop_scales=scale_lists,
        skip_last=st.integers(0, 6),
        fill=st.sampled_from(["repeat", "zero", "scaled"]),
        fill_scale=st.floats(-2, 2),
        score=st.sampled_from(["energy", "distance"]),
        border=st.sampled_from(["counted", "ignored"]),
        energy_from=st.sampled_from(["previous", "computed"]),
        gap=st.sampled_from(["rms", "l2"]),
    )
    | st.builds(SkipLastScales, st.integers(0, 6))
    | st.builds(StopGuidanceAfter, st.integers(0, 6))
    | st.builds(
        FixedRatio,
        keep=st.floats(0, 1),
        score=st.sampled_from(["energy", "variance", "distance", "random"]),
        prune_scales=scale_lists,
        fill=st.sampled_from(["repeat", "zero", "scaled"]),
        fill_scale=st.floats(-2, 2),
    )
)


class TestWords:
    @given(policies)
    def test_described_policies_parse_to_themselves(self, policy: Policy) -> None:
        assert parse_policy(describe(policy)) == policy

    def test_examples(self) -> None:
        assert parse_policy("ld-paper") == LatentDiscrepancy()
        assert parse_policy(" ld-skip-2 ") == LatentDiscrepancy(skip_last=2)
        assert parse_policy("ld-paper:rho=0.4,fill=zero") == LatentDiscrepancy(rho=0.4, fill="zero")
        assert parse_policy("ld-paper:prune_scales=5+6,stop_threshold=none") == LatentDiscrepancy(
            prune_scales=(5, 6), stop_threshold=None
        )
        assert parse_policy("skip:count=2") == SkipLastScales(2)
        assert parse_policy("stop-guidance:scale=3") == StopGuidanceAfter(3)
        assert parse_policy("none") is None
        assert describe(None) == describe(Policy()) == "none"

    @pytest.mark.parametrize(
        "text", ["", "lhep", "ld:rho", "ld:rho=high", "ld:speed=2", "none:rho=1", "skip:count=1.5", "ld:rho=2"]
    )
    def test_nonsense(self, text: str) -> None:
        with pytest.raises(ConfigError):
            parse_policy(text)


class TestSelection:
    def test_only_at_its_scales(self) -> None:
        for policy in (LatentDiscrepancy(prune_scales=(6,)), FixedRatio(prune_scales=(6,))):
            assert policy.select(view(residual(grid=(8, 8)), scale=5)) is None
            assert policy.select(view(residual())) is not None

    def test_energy_keeps_the_busy_half(self) -> None:
        """Left half random, right half flat: nearly all kept tokens are on the left."""
        codes = residual(channels=32)
        codes[:, :, 6:] = codes[:, :1, 6:7]
        selection = LatentDiscrepancy(prune_scales=(6,)).select(view(codes))
        assert selection is not None
        assert selection.score.shape == (16, 16)
        assert (selection.kept % 16 < 9).all()

    @pytest.mark.parametrize("score", ["energy", "variance", "distance", "random"])
    @pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
    def test_fixed_ratio_keeps_its_count(self, score: str, keep: float) -> None:
        selection = FixedRatio(keep=keep, score=score, prune_scales=(6,)).select(view(residual()))
        assert selection is not None
        assert selection.kept.numel() == round(keep * 256)
        assert selection.kept.tolist() == sorted(set(selection.kept.tolist()))

    def test_random_choice_belongs_to_the_seed(self) -> None:
        policy = FixedRatio(score="random", prune_scales=(5, 6))

        def choose(seed: int, scale: int) -> list[int]:
            selection = policy.select(view(residual(), scale, seed=seed))
            assert selection is not None
            return selection.kept.tolist()

        assert choose(1, 6) == choose(1, 6)
        assert choose(1, 6) != choose(2, 6)
        assert choose(1, 5) != choose(1, 6)[: len(choose(1, 5))]

    def test_given_shares_leave_out_what_is_zero(self) -> None:
        policy = GivenShares((0.5, 0.0, 0.25, 0.0))
        assert policy.scales_to_run(SQUARE) == 6
        assert policy.prunes(SQUARE) == (3, 4, 5)
        for scale, tokens in ((3, 18), (4, 0), (5, 36)):
            selection = policy.select(view(residual(grid=SQUARE.grids[scale - 1]), scale))
            assert selection is not None
            assert len(selection.kept) == tokens

    def test_distance_scores_outliers(self) -> None:
        seen = view(residual())
        seen.latent[:] = 0.1
        seen.latent[:, 3, 4] = 5.0
        selection = FixedRatio(keep=1 / 256, score="distance", prune_scales=(6,)).select(seen)
        assert selection is not None
        assert selection.kept.tolist() == [3 * 16 + 4]

    def test_computed_energy_is_carried_where_nothing_was_computed(self) -> None:
        codes = residual(channels=32)
        codes[:, :, 6:] = codes[:, :1, 6:7]  # fills are flat: they score nothing
        computed = torch.ones(12, 12, dtype=torch.bool)
        computed[:, 6:] = False
        earlier = torch.full((12, 12), 50.0)
        policy = LatentDiscrepancy(prune_scales=(6,), energy_from="computed")
        carried = policy.select(view(codes, energy=earlier, computed=computed))
        first = policy.select(view(codes, energy=None, computed=computed))
        assert carried is not None
        assert first is not None
        assert (carried.kept % 16 > 7).float().mean() > 0.9
        assert (first.kept % 16 < 9).all()

    def test_fill(self) -> None:
        seen = view(residual())
        zero, repeat = (LatentDiscrepancy(fill=fill).fill_residual(seen) for fill in ("zero", "repeat"))
        assert zero.shape == repeat.shape == (8, 16, 16)
        assert not zero.any()
        assert torch.equal(repeat[:, 5, 9], seen.residual[:, 5 * 12 // 16, 9 * 12 // 16])


class TestStopping:
    def gaps(self, *rms: float) -> list[GuidanceGap | None]:
        return [GuidanceGap((1, 1), torch.tensor([value**2]), None, 8) for value in rms]

    def test_stops_below_the_threshold_only(self) -> None:
        policy = LatentDiscrepancy(stop_threshold=0.15, stop_scales=(1, 2))
        assert policy.stops_after(self.gaps(1.0, 1.14), 1, SQUARE)
        assert policy.stops_after(self.gaps(1.0, 0.86), 1, SQUARE)
        assert not policy.stops_after(self.gaps(1.0, 1.16), 1, SQUARE)
        assert not policy.stops_after(self.gaps(1.0, 0.84), 1, SQUARE)

    def test_only_after_its_scales_and_with_both_gaps(self) -> None:
        policy = LatentDiscrepancy(stop_threshold=9.0, stop_scales=(2,))
        assert not policy.stops_after(self.gaps(1.0, 1.0), 1, SQUARE)
        assert policy.stops_after(self.gaps(1.0, 1.0, 1.0), 2, SQUARE)
        assert not policy.stops_after([*self.gaps(1.0), None, *self.gaps(1.0)], 2, SQUARE)
        assert not policy.stops_after([*self.gaps(1.0, 1.0), None], 2, SQUARE)

    def test_scales_may_be_a_list(self) -> None:
        listed = LatentDiscrepancy(prune_scales=[6], stop_scales=[3, 4])  # pyright: ignore[reportArgumentType]
        policy = LatentDiscrepancy(prune_scales=(6,), stop_scales=(3, 4))
        assert [listed.watches_guidance(k, SQUARE) for k in range(7)] == [
            policy.watches_guidance(k, SQUARE) for k in range(7)
        ]
        assert parse_policy(describe(listed)) == policy

    def test_always_after(self) -> None:
        assert [StopGuidanceAfter(2).stops_after([], k, SQUARE) for k in range(4)] == [False, False, True, True]

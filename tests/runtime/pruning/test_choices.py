"""What holds for the choice of tokens on every schedule, score and picture."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ldp_runtime import LHEP, SATS, StopAt, TopK, TopP, parse_policy
from ldp_runtime.pruning.policy import ScaleView, TokenRule
from ldp_runtime.pruning.sats import GuidanceGap
from ldp_runtime.schedule import SCALES_OF_SIZE, TEMPLATES, ScaleSchedule

SCORES = ["energy", "distance", "variance"]


@st.composite
def pictures(draw: st.DrawFn) -> ScaleView:
    """Any scale of up to a thousand tokens of any template, with codes of unit norm or any other, or a flat one."""
    schedule = ScaleSchedule.of_size(
        draw(st.sampled_from(sorted(SCALES_OF_SIZE))), draw(st.sampled_from(list(TEMPLATES)))
    )
    small = [k for k in range(1, len(schedule)) if schedule.tokens[k] <= 1100]
    scale, channels = draw(st.sampled_from(small)), draw(st.sampled_from([4, 8, 32]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    residual = torch.randn(channels, *schedule.grids[scale - 1], generator=generator)
    latent = torch.randn(channels, *schedule.grids[scale], generator=generator)
    kind = draw(st.sampled_from(["any", "bits", "flat"]))
    if kind == "bits":
        residual = (residual > 0).float().mul(2).sub(1) / channels**0.5
    if kind == "flat":
        residual, latent = torch.zeros_like(residual), torch.zeros_like(latent)
    computed = torch.rand(residual.shape[1:], generator=generator) < 0.7
    return ScaleView(schedule, scale, residual, computed, None, latent, 0)


def share_of(score: str, share: float, scale: int) -> TokenRule:
    """The rule that keeps a share of this score."""
    return LHEP(share, scales=(scale,)) if score == "energy" else TopP(share, score=score, scales=(scale,))  # pyright: ignore[reportArgumentType]


def kept(rule: TokenRule, picture: ScaleView) -> list[int]:
    selection = rule.select(picture)
    assert selection is not None
    assert selection.score.shape == picture.schedule.grids[picture.scale]
    return selection.kept.tolist()


@settings(max_examples=60, deadline=None)
@given(pictures(), st.sampled_from(SCORES), st.floats(0.05, 1), st.floats(0.05, 1))
def test_more_energy_keeps_more_tokens_and_the_same_ones(
    picture: ScaleView, score: str, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    few, many = (kept(share_of(score, rho, picture.scale), picture) for rho in (low, high))
    assert set(few) <= set(many)
    assert few == sorted(few)


@settings(max_examples=60, deadline=None)
@given(pictures(), st.sampled_from([*SCORES, "random"]), st.floats(0, 1), st.floats(0, 1))
def test_a_fixed_share_is_that_share_and_grows(picture: ScaleView, score: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    few, many = (kept(TopK(keep, score=score, scales=(picture.scale,)), picture) for keep in (low, high))
    tokens = picture.schedule.tokens[picture.scale]
    assert (len(few), len(many)) == (round(low * tokens), round(high * tokens))
    assert set(few) <= set(many)


@settings(max_examples=40, deadline=None)
@given(pictures(), st.sampled_from(SCORES))
def test_a_share_is_reached_with_the_fewest_tokens(picture: ScaleView, score: str) -> None:
    selection = share_of(score, 0.5, picture.scale).select(picture)
    assert selection is not None
    values, total = selection.score.double().flatten(), float(selection.score.double().sum())
    reached = float(values[selection.kept].sum())
    if total == 0:
        assert not len(selection.kept)
    else:
        assert reached >= 0.5 * total * (1 - 1e-9)
        assert reached - float(values[selection.kept].min()) < 0.5 * total
        assert len(selection.kept) <= (len(values) + 1) // 2


@settings(max_examples=40, deadline=None)
@given(pictures(), st.sampled_from(["repeat", "zero"]))
def test_fills_cover_the_grid(picture: ScaleView, fill: str) -> None:
    filled = LHEP(fill=fill).fill_residual(picture)  # pyright: ignore[reportArgumentType]
    assert filled.shape == picture.latent.shape
    assert fill != "zero" or not filled.any()


gaps = st.lists(st.floats(0.0078125, 100, width=32), min_size=4, max_size=4)


@given(gaps, st.floats(0, 3), st.floats(0, 3))
def test_a_greater_threshold_stops_no_later(values: list[float], one: float, other: float) -> None:
    schedule = ScaleSchedule.of_size("0.06M")
    seen: list[GuidanceGap | None] = [GuidanceGap((2, 2), torch.tensor(values) * (k + 1), None, 8) for k in range(7)]
    low, high = sorted((one, other))
    for scale in range(1, 7):
        stops = [SATS(delta, (scale,)).stops_after(seen, scale, schedule) for delta in (low, high)]
        assert stops[1] or not stops[0]


@given(gaps)
def test_a_scaled_gap_changes_by_its_scale(values: list[float]) -> None:
    """Gaps of k times the size change by k - 1, whatever the norm and whatever was computed, on equal places."""
    from ldp_runtime.pruning.sats import change

    tokens = torch.tensor(values)
    for kept_tokens in (None, torch.arange(4)):
        before, after = (GuidanceGap((2, 2), tokens * factor, kept_tokens, 8) for factor in (1.0, 2.25))
        for norm in ("rms", "l2"):
            assert change(before, after, norm) == pytest.approx(0.5, rel=1e-4)
    nothing = GuidanceGap((2, 2), torch.empty(0), torch.empty(0, dtype=torch.long), 8)
    assert change(nothing, GuidanceGap((2, 2), tokens, None, 8)) is None


@pytest.mark.parametrize("name", ["ld", "ld-fast"])
def test_the_recommended_policies_follow_the_schedule(name: str) -> None:
    policy = parse_policy(name)
    assert policy is not None
    assert isinstance(policy.guidance, StopAt)
    assert policy.prunes(ScaleSchedule.of_size("0.06M")) == (5, 6)
    assert policy.prunes(ScaleSchedule.of_size("1M")) == (10, 11, 12)
    for size in SCALES_OF_SIZE:
        for ratio in TEMPLATES:
            schedule = ScaleSchedule.of_size(size, ratio)
            policy.check(schedule)
            pruned = sum(schedule.tokens[k] for k in policy.prunes(schedule))
            assert pruned >= 0.75 * schedule.total_tokens
            first = policy.prunes(schedule)[0]
            stopped = [k for k in range(len(schedule)) if policy.guidance.stops_after([], k, schedule)]
            assert stopped == list(range(first - 1, len(schedule)))

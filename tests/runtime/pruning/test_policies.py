"""Policies: their checks, their words, and the scales they derive."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime import LHEP, SATS, Policy, StopAt, TopK, TopP, parse_policy
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning import older
from ldp_runtime.pruning.parse import NAMED, describe, policy_text, read_policy
from ldp_runtime.pruning.policy import GuidanceRule, ScaleView
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
            *(lambda rho=rho: LHEP(rho) for rho in (0.0, -0.5, 1.01, float("nan"))),
            *(lambda p=p: TopP(p) for p in (0.0, 1.01, float("nan"))),
            *(lambda d=d: SATS(d) for d in (-0.1, float("inf"), float("nan"))),
            *(lambda detail=detail: LHEP(detail=detail) for detail in (0.0, 1.5, float("nan"))),
            lambda: Policy(skip_last=-1),
            lambda: LHEP(fill="mean"),  # type: ignore[arg-type]
            lambda: LHEP(energy_from="next"),  # type: ignore[arg-type]
            lambda: LHEP(border="open"),  # type: ignore[arg-type]
            lambda: LHEP(haar="pixels"),  # type: ignore[arg-type]
            lambda: LHEP(scales=()),
            lambda: SATS(gap="l1"),  # type: ignore[arg-type]
            lambda: SATS(then="guess"),  # type: ignore[arg-type]
            lambda: StopAt("last"),  # type: ignore[arg-type]
            *(lambda share=share: TopK(share) for share in (-0.1, 1.1, float("nan"), (0.5, 2.0))),
            lambda: TopK(score="attention"),
            lambda: TopK(fill="mean"),  # type: ignore[arg-type]
            lambda: TopP(score="random"),  # type: ignore[arg-type]
        ],
    )
    def test_senseless_numbers(self, make: Callable[[], object]) -> None:
        with pytest.raises(ConfigError):
            make()

    @pytest.mark.parametrize(
        "policy",
        [
            Policy(LHEP(scales=(7,))),
            Policy(LHEP(scales=(0,))),
            Policy(LHEP(scales=(-1,))),
            Policy(TopK(scales=(7,))),
            Policy(TopK((0.5,) * 7)),
            Policy(guidance=SATS(scales=(7,))),
            Policy(guidance=SATS(scales=(0,))),
            Policy(guidance=StopAt(7)),
            Policy(guidance=StopAt(-1)),
            Policy(skip_last=7),
        ],
        ids=str,
    )
    def test_scales_that_the_schedule_lacks(self, policy: Policy) -> None:
        with pytest.raises(ConfigError):
            policy.check(SQUARE)

    @pytest.mark.parametrize("size", SCALES_OF_SIZE)
    @pytest.mark.parametrize("ratio", TEMPLATES)
    def test_derived_scales_pass_their_own_check(self, size: str, ratio: float) -> None:
        schedule = ScaleSchedule.of_size(size, ratio)
        prunes, stops = LHEP().prunes(schedule), SATS().stops(schedule)
        Policy(LHEP(scales=prunes), SATS(scales=stops)).check(schedule)
        assert prunes == schedule.detail_scales()
        assert stops == (prunes[0] - 1, *prunes)
        assert SATS().watches(stops[0] - 1, schedule)
        assert not SATS().watches(stops[0] - 2, schedule)

    def test_paper_scales_on_the_square_1m_schedule(self) -> None:
        schedule = ScaleSchedule.of_size("1M")
        assert LHEP().prunes(schedule) == TopK().prunes(schedule) == (10, 11, 12)
        assert SATS().stops(schedule) == (9, 10, 11, 12)
        assert Policy(LHEP(), SATS(), skip_last=2).scales_to_run(schedule) == 11

    def test_parts_can_be_left_out(self) -> None:
        assert Policy(guidance=SATS()).prunes(SQUARE) == ()
        assert SATS(scales=()).stops(SQUARE) == ()
        assert not any(SATS(scales=()).watches(k, SQUARE) for k in range(7))
        assert not any(StopAt().watches(k, SQUARE) for k in range(7))


scale_lists = st.none() | st.lists(st.integers(1, 6), unique=True, min_size=1, max_size=4).map(
    lambda s: tuple(sorted(s))
)
shares = st.floats(0.01, 1.0)
where = {"scales": scale_lists, "detail": shares, "fill": st.sampled_from(["repeat", "zero", "linear"])}
then = st.sampled_from(["conditional", "reuse"])
token_rules = (
    st.builds(
        LHEP,
        rho=shares,
        border=st.sampled_from(["counted", "ignored"]),
        energy_from=st.sampled_from(["previous", "computed"]),
        haar=st.sampled_from(["tokens", "latents"]),
        **where,
    )
    | st.builds(TopP, p=shares, score=st.sampled_from(["distance", "variance", "error"]), **where)
    | st.builds(
        TopK,
        share=st.floats(0, 1) | st.lists(st.floats(0, 1), min_size=1, max_size=6).map(tuple),
        score=st.sampled_from(["energy", "variance", "distance", "random"]),
        **where,
    )
)
guidance_rules = st.builds(
    SATS,
    delta=st.floats(0, 10),
    scales=st.none() | st.lists(st.integers(1, 6), unique=True, max_size=4).map(tuple),
    gap=st.sampled_from(["rms", "l2"]),
    then=then,
) | st.builds(StopAt, scale=st.integers(0, 6) | st.just("first"), then=then)
policies = st.builds(Policy, st.none() | token_rules, st.none() | guidance_rules, st.integers(0, 6))


def test_rules_that_leave_a_question_open_cannot_be_made() -> None:
    class Undecided(GuidanceRule):
        """A rule that does not say when it stops."""

    with pytest.raises(TypeError, match="stops_after"):
        Undecided()  # type: ignore[abstract]  # pyright: ignore[reportAbstractUsage]


class TestWords:
    @given(policies)
    def test_printing_and_reading_are_inverse(self, policy: Policy) -> None:
        assert read_policy(policy_text(policy), NAMED) == policy
        assert read_policy(describe(policy), NAMED) == policy

    @given(policies)
    def test_texts_hold_every_field_and_no_name_that_may_change(self, policy: Policy) -> None:
        renamed = {name: Policy(skip_last=1) for name in NAMED if name.startswith("ld")}
        assert read_policy(policy_text(policy), NAMED | renamed) == policy
        bases = {"none": Policy(), "lhep": Policy(LHEP(0.1)), "top-p": Policy(TopP(0.1)), "top-k": Policy(TopK(0.1))}
        assert read_policy(policy_text(policy), bases) == policy

    def test_examples(self) -> None:
        assert parse_policy("ld-paper") == Policy(LHEP(), SATS())
        assert parse_policy(" ld-skip-2 ") == Policy(LHEP(), SATS(), 2)
        assert parse_policy("ld-paper:rho=0.4,fill=zero") == Policy(LHEP(0.4, fill="zero"), SATS())
        assert parse_policy("ld-paper:scales=5+6,delta=none") == Policy(LHEP(scales=(5, 6)))
        assert parse_policy("ld-paper:scales=") == Policy(guidance=SATS())
        assert parse_policy("none:skip_last=2") == Policy(skip_last=2)
        assert parse_policy("none:stop=3,then=reuse") == Policy(guidance=StopAt(3, "reuse"))
        assert parse_policy("none:delta=0.2") == Policy(guidance=SATS(0.2))
        assert parse_policy("top-k:share=0.5+0.25") == Policy(TopK((0.5, 0.25)))
        assert parse_policy("none") is None
        assert describe(None) == describe(Policy()) == policy_text(None) == "none"
        assert describe(parse_policy("ld-fast:p=0.9")) == "ld-fast:p=0.9"
        assert describe(Policy(LHEP())) == "lhep"

    def test_names_mean_what_they_say(self) -> None:
        """`ld` scores by LHEP's energy; the older `ld` is `ld-fast`, but for how it asks to stop at once."""
        fast, older_fast = parse_policy("ld-fast"), older.LD
        assert isinstance(NAMED["ld"].tokens, LHEP)
        assert fast is not None
        assert fast.tokens == older_fast.tokens
        assert older_fast.guidance == SATS(9.0, then="reuse")
        assert fast.guidance == StopAt("first", "reuse")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "best",
            "ld:rho",
            "ld:rho=high",
            "ld:speed=2",
            "none:rho=1",
            "none:then=reuse",
            "none:skip_last=1.5",
            "ld:rho=2",
            "ld:fitted=1",
            "ld:stop=3,delta=0.1",
            "top-k:share=0.5+x",
            "given:keep=0.5+x",
            "stop-guidance:scale=3,bogus=1",
            "ld:scales=,bogus=1",
            "ld:scales=,rho=7",
            "ld:delta=none,stop=3",
            "ld:end_threshold=0.1",
            "ld:fill=scaled,fill_scale=-0.3",
            "ld-fast:score=decoder",
        ],
    )
    def test_nonsense(self, text: str) -> None:
        with pytest.raises(ConfigError):
            parse_policy(text)


class TestOlderSpellings:
    @pytest.mark.parametrize(
        ("text", "policy"),
        [
            ("ld-paper:prune_scales=5+6,stop_threshold=none", Policy(LHEP(scales=(5, 6)))),
            ("ld-paper:prune_share=0.5,after_stop=reuse", Policy(LHEP(detail=0.5), SATS(then="reuse"))),
            ("ld-paper:score=distance,rho=0.7", Policy(TopP(0.7, fill="repeat"), SATS())),
            ("skip:count=2", Policy(skip_last=2)),
            ("skip", Policy(skip_last=1)),
            ("skip:count=1,stop_after=4", Policy(None, StopAt(4), 1)),
            ("stop-guidance:scale=3", Policy(guidance=StopAt(3))),
            (
                "fixed:keep=0.6,score=distance,fill=zero,stop_after=4",
                Policy(TopK(0.6, score="distance", fill="zero"), StopAt(4)),
            ),
            ("fixed:prune_scales=6", Policy(TopK(scales=(6,)))),
            ("given:keep=0.5+0.4,stop_after=4", Policy(TopK((0.5, 0.4), score="random", fill="zero"), StopAt(4))),
            ("given:keep=0.5+0.0", Policy(TopK((0.5, 0.0), score="random", fill="zero"), None, 1)),
        ],
    )
    def test_texts(self, text: str, policy: Policy) -> None:
        assert parse_policy(text) == policy

    def test_classes_warn_and_give_compositions(self) -> None:
        with pytest.warns(DeprecationWarning, match=r"Policy\(LHEP"):
            assert older.LatentDiscrepancy(rho=0.4, stop_threshold=None) == Policy(LHEP(0.4))
        with pytest.warns(DeprecationWarning, match="deprecated"):
            listed = older.LatentDiscrepancy(prune_scales=[6], stop_scales=[3, 4])  # pyright: ignore[reportArgumentType]
        assert listed == Policy(LHEP(scales=(6,)), SATS(scales=(3, 4)))
        with pytest.warns(DeprecationWarning, match="deprecated"):
            assert older.LatentDiscrepancy(prune_scales=(), score="distance") == Policy(guidance=SATS())
        with pytest.warns(DeprecationWarning, match="deprecated"):
            assert older.SkipLastScales(2, stop_after=3) == Policy(None, StopAt(3), 2)
        with pytest.warns(DeprecationWarning, match="deprecated"):
            assert older.StopGuidanceAfter(3) == Policy(guidance=StopAt(3))
        with pytest.warns(DeprecationWarning, match="deprecated"):
            assert older.FixedRatio(0.3, stop_after=2) == Policy(TopK(0.3), StopAt(2))

    def test_they_are_imported_from_where_they_were(self) -> None:
        import ldp_runtime

        for name in ("LatentDiscrepancy", "FixedRatio", "SkipLastScales", "StopGuidanceAfter"):
            assert getattr(ldp_runtime, name) is getattr(older, name)


class TestSelection:
    def test_only_at_its_scales(self) -> None:
        for rule in (LHEP(scales=(6,)), TopK(scales=(6,)), TopP(scales=(6,))):
            assert rule.select(view(residual(grid=(8, 8)), scale=5)) is None
            assert rule.select(view(residual())) is not None

    def test_energy_keeps_the_busy_half(self) -> None:
        """Left half random, right half flat: nearly all kept tokens are on the left."""
        codes = residual(channels=32)
        codes[:, :, 6:] = codes[:, :1, 6:7]
        selection = LHEP(scales=(6,)).select(view(codes))
        assert selection is not None
        assert selection.score.shape == (16, 16)
        assert (selection.kept % 16 < 9).all()

    @pytest.mark.parametrize("score", ["energy", "variance", "distance", "random"])
    @pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
    def test_fixed_ratio_keeps_its_count(self, score: str, keep: float) -> None:
        selection = TopK(keep, score=score, scales=(6,)).select(view(residual()))
        assert selection is not None
        assert selection.kept.numel() == round(keep * 256)
        assert selection.kept.tolist() == sorted(set(selection.kept.tolist()))

    def test_random_choice_belongs_to_the_seed(self) -> None:
        policy = TopK(score="random", scales=(5, 6))

        def choose(seed: int, scale: int) -> list[int]:
            selection = policy.select(view(residual(), scale, seed=seed))
            assert selection is not None
            return selection.kept.tolist()

        assert choose(1, 6) == choose(1, 6)
        assert choose(1, 6) != choose(2, 6)
        assert choose(1, 5) != choose(1, 6)[: len(choose(1, 5))]

    def test_shares_of_the_last_scales(self) -> None:
        policy = TopK((0.5, 0.0, 0.25, 1.0), score="random")
        assert policy.prunes(SQUARE) == (3, 4, 5)
        for scale, tokens in ((3, 18), (4, 0), (5, 36)):
            selection = policy.select(view(residual(grid=SQUARE.grids[scale - 1]), scale))
            assert selection is not None
            assert len(selection.kept) == tokens

    def test_distance_scores_outliers(self) -> None:
        seen = view(residual())
        seen.latent[:] = 0.1
        seen.latent[:, 3, 4] = 5.0
        selection = TopK(1 / 256, score="distance", scales=(6,)).select(seen)
        assert selection is not None
        assert selection.kept.tolist() == [3 * 16 + 4]

    def test_computed_energy_is_carried_where_nothing_was_computed(self) -> None:
        codes = residual(channels=32)
        codes[:, :, 6:] = codes[:, :1, 6:7]  # fills are flat: they score nothing
        computed = torch.ones(12, 12, dtype=torch.bool)
        computed[:, 6:] = False
        earlier = torch.full((12, 12), 50.0)
        policy = LHEP(scales=(6,), energy_from="computed")
        carried = policy.select(view(codes, energy=earlier, computed=computed))
        first = policy.select(view(codes, energy=None, computed=computed))
        assert carried is not None
        assert first is not None
        assert (carried.kept % 16 > 7).float().mean() > 0.9
        assert (first.kept % 16 < 9).all()

    def test_fill(self) -> None:
        seen = view(residual())
        zero, repeat = (LHEP(fill=fill).fill_residual(seen) for fill in ("zero", "repeat"))
        assert zero.shape == repeat.shape == (8, 16, 16)
        assert not zero.any()
        assert torch.equal(repeat[:, 5, 9], seen.residual[:, 5 * 12 // 16, 9 * 12 // 16])


class TestStopping:
    def gaps(self, *rms: float) -> list[GuidanceGap | None]:
        return [GuidanceGap((1, 1), torch.tensor([value**2]), None, 8) for value in rms]

    def test_stops_below_the_threshold_only(self) -> None:
        policy = SATS(0.15, (1, 2))
        assert policy.stops_after(self.gaps(1.0, 1.14), 1, SQUARE)
        assert policy.stops_after(self.gaps(1.0, 0.86), 1, SQUARE)
        assert not policy.stops_after(self.gaps(1.0, 1.16), 1, SQUARE)
        assert not policy.stops_after(self.gaps(1.0, 0.84), 1, SQUARE)

    def test_only_after_its_scales_and_with_both_gaps(self) -> None:
        policy = SATS(9.0, (2,))
        assert not policy.stops_after(self.gaps(1.0, 1.0), 1, SQUARE)
        assert policy.stops_after(self.gaps(1.0, 1.0, 1.0), 2, SQUARE)
        assert not policy.stops_after([*self.gaps(1.0), None, *self.gaps(1.0)], 2, SQUARE)
        assert not policy.stops_after([*self.gaps(1.0, 1.0), None], 2, SQUARE)

    def test_always_after(self) -> None:
        assert [StopAt(2).stops_after([], k, SQUARE) for k in range(4)] == [False, False, True, True]

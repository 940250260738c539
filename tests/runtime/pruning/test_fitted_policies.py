"""Fits in policies: fills, scores and guidance that need numbers of one bundle, and how these travel."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime import LHEP, SATS, Policy, TopK, TopP, parse_policy
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.pruning import fills, scores
from ldp_runtime.pruning import recall as guidance_recall
from ldp_runtime.pruning.fitted import Fitted, needs_fits
from ldp_runtime.pruning.policy import ScaleView
from ldp_runtime.schedule import ScaleSchedule
from torch.nn import functional as F

SQUARE = ScaleSchedule.of_size("0.06M")
C = 6


def view(seed: int = 0, scale: int = 6, patch: int = 1) -> ScaleView:
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randn(C, *SQUARE.grids[scale - 1], generator=generator)
    latent = torch.randn(C, *SQUARE.grids[scale], generator=generator)
    everywhere = torch.ones(residual.shape[1:], dtype=torch.bool)
    return ScaleView(SQUARE, scale, residual, everywhere, None, latent, seed, patch)


def fitted(seed: int = 0) -> Fitted:
    """Fits of the last two scales."""
    generator = torch.Generator().manual_seed(seed)
    kernel, bias = torch.randn(C, 2 * C, 3, 3, generator=generator), torch.randn(C, generator=generator)
    fill, error = (kernel, bias), (1.0, 0.5, 0.0, 0.25, 0.125)
    return Fitted({5: fill, 6: fill}, {5: error, 6: error})


NEEDY = [
    LHEP(fill="linear"),
    TopP(fill="linear"),
    TopP(score="error"),
    TopK(fill="linear"),
    TopK(score="error"),
]


class TestWithoutFits:
    @pytest.mark.parametrize("rule", NEEDY, ids=repr)
    def test_a_needy_policy_is_refused_before_any_work(self, rule: LHEP | TopP | TopK) -> None:
        assert needs_fits(Policy(rule))
        with pytest.raises(ConfigError, match="needs numbers that are fitted"):
            Policy(rule).check(SQUARE)

    @pytest.mark.parametrize("rule", NEEDY, ids=repr)
    def test_with_fits_it_is_served(self, rule: LHEP | TopP | TopK) -> None:
        served = Policy(dataclasses.replace(rule, fitted=fitted()))
        served.check(SQUARE)
        assert not needs_fits(served)

    def test_scales_that_were_not_fitted_are_named(self) -> None:
        rule = LHEP(fill="linear", fitted=fitted())
        with pytest.raises(ConfigError, match=r"fitted for scales \[5, 6\], not for scale 4"):
            rule.fill_residual(view(scale=4))

    @pytest.mark.parametrize(
        "rule",
        [
            LHEP(fill="linear", scales=(4, 5)),
            TopP(score="error", detail=0.8),
            TopK(score="error", scales=(4,)),
        ],
        ids=repr,
    )
    def test_they_are_refused_before_any_work(self, rule: LHEP | TopP | TopK) -> None:
        with pytest.raises(ConfigError, match=r"fitted for scales \[5, 6\], not for scale 4"):
            Policy(dataclasses.replace(rule, fitted=fitted())).check(SQUARE)

    def test_other_policies_need_none(self) -> None:
        assert not any(map(needs_fits, (None, Policy(), Policy(LHEP(), SATS()), Policy(TopK()), parse_policy("ld"))))

    def test_text_cannot_set_them(self) -> None:
        with pytest.raises(ConfigError, match="no option"):
            parse_policy("ld:fitted=1")


class TestJson:
    def test_older_files_hold_more(self) -> None:
        plain = fitted().to_json() | {"guidance": {"6": [0.4, 0.1]}, "metric": [[1.0]]}
        assert Fitted.from_json(plain).error == fitted().error

    def test_numbers_survive(self) -> None:
        before = fitted()
        after = Fitted.from_json(json.loads(json.dumps(before.to_json())))
        torch.testing.assert_close(after.fill[6][0], before.fill[6][0], atol=1e-6, rtol=0)
        torch.testing.assert_close(after.fill[6][1], before.fill[6][1], atol=1e-6, rtol=0)
        assert after.error == before.error

    @pytest.mark.parametrize("part", ["fill", "error"])
    def test_missing_or_misshapen_parts_are_refused(self, part: str) -> None:
        plain = fitted().to_json()
        with pytest.raises(IntegrityError):
            Fitted.from_json({k: v for k, v in plain.items() if k != part})
        plain[part] = {"6": [[1.0], "x"]}
        with pytest.raises(IntegrityError):
            Fitted.from_json(plain)

    def test_a_kernel_of_another_model_is_refused(self) -> None:
        plain = fitted().to_json()
        plain["fill"]["6"]["bias"].append(0.0)
        with pytest.raises(IntegrityError):
            Fitted.from_json(plain)

    @pytest.mark.parametrize(
        "change",
        [
            {"error": {"6": [float("nan")] * 5}},
            {"error": {"6": [float("inf")] * 5}},
            {"fill": {"6": {"kernel": [[[[float("nan")] * 3] * 3] * 2], "bias": [0.0]}}},
        ],
    )
    def test_numbers_that_no_fit_gives_are_refused(self, change: dict) -> None:
        with pytest.raises(IntegrityError):
            Fitted.from_json(fitted().to_json() | change)


class TestScores:
    def test_change_is_the_size_of_the_resized_residual(self) -> None:
        seen = view()
        resized = F.interpolate(seen.residual[None], (16, 16), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(scores.change(seen), (resized**2).sum(dim=0))

    def test_error_is_a_weighted_sum(self) -> None:
        seen = view()
        expected = scores.distance(seen) + 0.5 * scores.variance(seen) + 0.25 * scores.change(seen) + 0.125
        torch.testing.assert_close(scores.score_map("error", seen, fitted()), expected)

    def test_energy_of_latents_is_that_of_the_unshuffled_map(self) -> None:
        """Tokens of 2x2 latents: each token is one patch of its own latents."""
        generator = torch.Generator().manual_seed(0)
        residual = torch.randn(8, 12, 12, generator=generator)
        latent = torch.randn(8, 16, 16, generator=generator)
        seen = ScaleView(SQUARE, 6, residual, torch.ones(12, 12, dtype=torch.bool), None, latent, 0, patch=2)
        shuffled = dataclasses.replace(seen, residual=F.pixel_shuffle(residual, 2), patch=1)
        by_token = scores.energy(seen, per_latent=True)
        torch.testing.assert_close(by_token, scores.energy(shuffled))
        assert not torch.allclose(by_token, scores.energy(seen))
        assert torch.equal(scores.energy(view(), per_latent=True), scores.energy(view()))


class TestFill:
    @given(st.integers(0, 10**6))
    def test_linear_is_the_plain_sum_over_neighbours(self, seed: int) -> None:
        seen = view(seed)
        kernel, bias = fitted(seed).fill[6]
        known = fills.predictors(seen).double()
        y, x = seed % 16, seed // 16 % 16
        total = bias.double().clone()
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                at = known[:, min(max(y + dy, 0), 15), min(max(x + dx, 0), 15)]
                total += kernel[:, :, dy + 1, dx + 1].double() @ at
        torch.testing.assert_close(fills.linear(seen, kernel, bias)[:, y, x].double(), total, atol=1e-4, rtol=1e-4)


class TestGuidance:
    def test_what_was_computed_is_remembered_and_the_rest_is_carried_over(self) -> None:
        before = torch.arange(4.0).view(1, 2, 2)
        kept = torch.tensor([5])
        now = guidance_recall.remember(before, torch.tensor([[9.0]]), kept, (4, 4))
        expected = F.interpolate(before[None], (4, 4), mode="bilinear", align_corners=False)[0]
        expected[0, 1, 1] = 9.0
        torch.testing.assert_close(now, expected)
        first = guidance_recall.remember(None, torch.tensor([[9.0]]), kept, (4, 4))
        assert first.sum() == 9

    def test_recalled_at_the_kept_places(self) -> None:
        map_ = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
        kept = torch.tensor([0, 6])
        assert torch.equal(guidance_recall.recall(map_, kept, (4, 4)), map_.flatten(1).T[kept])
        assert guidance_recall.recall(map_, None, (8, 8)).shape == (64, 3)

    def test_what_follows_a_stop(self) -> None:
        said, other, last = torch.tensor([[2.0]]), torch.tensor([[1.5]]), torch.tensor([[1.0]])
        plain, reuse = SATS(then="conditional"), SATS(then="reuse")
        assert plain.remember(None, said, other, None, (1, 1)) is None
        remembered = reuse.remember(None, said, other, None, (1, 1))
        assert remembered is not None
        assert remembered.item() == 0.5
        assert reuse.missing(said, last, 6) is last

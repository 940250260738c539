"""The scale loop through real ONNX Runtime engines, against the originals' goldens and the masked oracle."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from helpers.engine_runs import engines_of, run_loop
from helpers.goldens import LATENT, RAW_LOGITS, Golden
from helpers.naive import naive_run
from ldp_runtime import LHEP, SATS, Pipeline, Policy, StopAt, TopK, TopP
from ldp_runtime.engines.kv_cache import DynamicKVCache
from ldp_runtime.pipeline.pipeline import GenerationResult
from ldp_runtime.pipeline.request import sizes
from ldp_runtime.pruning.fills import Fill
from ldp_runtime.pruning.parse import describe, policy_text
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import TEMPLATES
from torch.nn import functional as F

from ldp_export.reference.infinity import InfinitySettings, generate
from ldp_export.reference.oracle import pruned_infinity_logits


@dataclass(frozen=True)
class Flavour:
    golden: Golden
    pipe: Pipeline

    @property
    def text(self) -> torch.Tensor:
        return self.golden.texts("text")[0]

    def draw(self, **options) -> GenerationResult:
        return self.pipe(**{"prompt_embeds": self.text, "output_type": "latent", "seed": 7} | options)

    def draw_golden(self, name: str) -> torch.Tensor:
        settings, prompt = self.golden.settings(name), self.golden.prompt(name)
        return self.pipe(
            prompt_embeds=prompt["texts"],
            negative_prompt_embeds=prompt["negatives"],
            guidance_scale=settings.guidance,
            temperature=settings.temperature,
            top_k=settings.filter.top_k,
            top_p=settings.filter.top_p,
            seed=settings.seed,
            output_type="latent",
        ).images


@pytest.fixture(scope="module", params=["2b", "8b"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    suffix = "" if request.param == "2b" else "_8b"
    return Flavour(request.getfixturevalue(f"golden_{request.param}"), request.getfixturevalue(f"tiny_pipe{suffix}"))


@pytest.fixture(scope="module")
def flavour_2b(golden_2b: Golden, tiny_pipe: Pipeline) -> Flavour:
    return Flavour(golden_2b, tiny_pipe)


class TestGoldens:
    @pytest.mark.parametrize("name", ["greedy", "sampled", "nocfg", "negprompt", "batch2"])
    def test_latents_are_the_originals(self, flavour: Flavour, name: str) -> None:
        """A single different bit would move the latent by far more than the tolerance."""
        expected = flavour.golden.run(name)["z"]
        torch.testing.assert_close(flavour.draw_golden(name), expected, atol=LATENT, rtol=0)

    def test_sampling_without_filters(self, flavour_2b: Flavour) -> None:
        expected = flavour_2b.golden.run("sampled_nofilter")["z"]
        torch.testing.assert_close(flavour_2b.draw_golden("sampled_nofilter"), expected, atol=LATENT, rtol=0)

    def test_pixels_are_the_originals(self, flavour: Flavour) -> None:
        run, settings = flavour.golden.run("greedy"), flavour.golden.settings("greedy")
        result = flavour.draw(guidance_scale=settings.guidance, top_k=1, top_p=0.0, output_type="torch")
        torch.testing.assert_close(result.images * 2 - 1, run["img_float"], atol=1e-4, rtol=0)
        assert result.traces[0].decode_s > 0

    @pytest.mark.parametrize("name", ["greedy", "sampled"])
    def test_raw_logits_teacher_forced(self, flavour: Flavour, name: str) -> None:
        expected, settings = flavour.golden.run(name), flavour.golden.settings(name)
        scales = range(len(flavour.golden.schedule))
        forced = [expected[f"bits_tok_{k}"][0].bool() for k in scales]
        run = run_loop(
            flavour.pipe, flavour.text, guidance=settings.guidance, temperature=settings.temperature, bits=forced
        )
        for k in scales:
            for row, branch in enumerate(("cond", "uncond")):
                if f"logits_raw_{branch}_{k}" in expected:  # goldens have no unconditional row where guidance is 1
                    logits = expected[f"logits_raw_{branch}_{k}"][0]
                    torch.testing.assert_close(run.logits[k][row], logits, atol=RAW_LOGITS, rtol=0)

    def test_full_model_equals_the_reference_model(self, flavour: Flavour) -> None:
        text = flavour.golden.texts("neg")[0]
        settings = InfinitySettings(3.0, 0.5, SamplingFilter(900, 0.97), seed=7)
        expected = generate(
            flavour.golden.transformer, [text], flavour.golden.schedule, flavour.golden.layout, settings
        )
        got = flavour.draw(prompt_embeds=text, policy=None).images
        torch.testing.assert_close(got, expected.latent, atol=LATENT, rtol=0)


def random_masks(scales: int, tokens: tuple[int, ...], seed: int) -> list[torch.Tensor | None]:
    """Masks from scale 1 on; one scale keeps nothing, another a single token."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(scales - 1, generator=generator) + 1
    masks: list[torch.Tensor | None] = [None] * scales
    for place, k in enumerate(order.tolist()):
        most = tokens[k]
        count = [0, 1, most][place] if place < 3 else int(torch.randint(1, most + 1, (1,), generator=generator))
        masks[k] = torch.randperm(most, generator=generator)[:count].sort().values
    return masks


class TestPruned:
    @pytest.mark.parametrize("seed", range(5))
    def test_any_masks_equal_the_masked_oracle(self, flavour: Flavour, seed: int) -> None:
        golden = flavour.golden
        schedule = golden.schedule
        run = golden.run("greedy")
        bits = [run[f"bits_tok_{k}"][0].bool() for k in range(len(schedule))]
        keep = random_masks(len(schedule), schedule.tokens, seed)
        rows = torch.stack((flavour.text, golden.transformer.unconditional_text(len(flavour.text))))
        expected = pruned_infinity_logits(golden.transformer, rows, bits, keep, schedule, golden.layout)
        got = run_loop(flavour.pipe, flavour.text, bits=bits, keep=keep)
        for k, logits in enumerate(expected):
            if logits.shape[1]:
                torch.testing.assert_close(got.logits[k], logits, atol=RAW_LOGITS, rtol=0)
            else:
                assert k not in got.logits  # nothing to compute: no call

    @pytest.mark.parametrize(
        "policy",
        [
            Policy(LHEP(), SATS()),
            Policy(LHEP(fill="zero"), SATS(), skip_last=1),
            Policy(LHEP(0.3, scales=(4, 5, 6))),
            Policy(LHEP(0.8, scales=(4, 6)), SATS(0.3, (2, 3, 4, 5))),
            Policy(None, SATS(0.1, (1, 2, 3, 4, 5, 6))),
            Policy(LHEP(scales=(5, 6), border="ignored"), SATS()),
            Policy(TopP(0.4, scales=(5, 6), fill="repeat")),
            Policy(TopP(0.8, detail=0.45), SATS(9, then="reuse")),
            Policy(LHEP(0.8, fill="zero"), StopAt("first", then="reuse")),
        ],
        ids=describe,
    )
    def test_policy_equals_the_plain_rewriting(self, flavour: Flavour, policy: Policy) -> None:
        golden = flavour.golden
        expected = naive_run(
            golden.transformer,
            flavour.text,
            golden.schedule,
            golden.layout,
            policy,
            3.0,
            0.5,
            SamplingFilter(900, 0.97),
            7,
        )
        result = flavour.draw(policy=policy, guidance_scale=3.0, temperature=0.5, top_k=900, top_p=0.97)
        for scale in result.traces[0].scales:
            assert (list(range(scale.tokens)) if scale.kept is None else scale.kept.tolist()) == expected.kept[
                scale.scale
            ]
        assert result.traces[0].stopped_after == expected.stopped_after
        torch.testing.assert_close(result.images[0], expected.latent, atol=LATENT, rtol=0)

    @pytest.mark.parametrize("fill", ["repeat", "zero"])
    def test_pruning_nothing_is_bit_identical_to_the_full_model(self, flavour: Flavour, fill: Fill) -> None:
        everything = Policy(TopK(1.0, scales=(1, 3, 6), fill=fill))
        assert torch.equal(flavour.draw(policy=everything).images, flavour.draw().images)

    def test_cache_holds_computed_tokens_only(self, flavour_2b: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
        lengths: list[tuple[int, int]] = []
        original = DynamicKVCache.advance

        def advance(self: DynamicKVCache, tokens: int) -> None:
            original(self, tokens)
            lengths.append((tokens, self.length))

        monkeypatch.setattr(DynamicKVCache, "advance", advance)
        trace = flavour_2b.draw(policy=Policy(LHEP(scales=(4, 5, 6)))).traces[0]
        computed = [scale.tokens for scale in trace.scales]
        assert computed[5] < trace.scales[5].tokens_full
        assert lengths == [(n, sum(computed[: k + 1])) for k, n in enumerate(computed[:-1])]  # the last needs no append

    @pytest.mark.parametrize("keep", [0.0, 0.004])
    def test_scales_that_keep_nothing_or_one_token(self, flavour: Flavour, keep: float) -> None:
        result = flavour.draw(policy=Policy(TopK(keep, scales=(5, 6))))
        assert [scale.tokens for scale in result.traces[0].scales[5:]] == [round(keep * 144), round(keep * 256)]
        assert result.images.isfinite().all()

    def test_empty_scale_repeats_the_previous_residual(self, flavour_2b: Flavour) -> None:
        """With nothing computed at scales 5 and 6, their residuals are nearest copies of R_4."""
        pruned = flavour_2b.draw(policy=Policy(TopK(0.0, scales=(5, 6)))).images
        after_5 = flavour_2b.draw(policy=Policy(TopK(0.0, scales=(5,)), skip_last=1)).images
        after_4 = flavour_2b.draw(policy=Policy(skip_last=2)).images
        residual_6 = pruned - after_5
        torch.testing.assert_close(
            residual_6.norm(dim=1), torch.ones(1, 16, 16)
        )  # codes, at the final grid as they are
        places = torch.arange(16) * 12 // 16  # of scale 6 in scale 5, whose own are copies of scale 4
        places = places * 8 // 12
        residual_5 = torch.stack(
            [residual_6[..., places.tolist().index(y), :] for y in sorted(set(places.tolist()))], -2
        )
        residual_4 = torch.stack([residual_5[..., places.tolist().index(x)] for x in sorted(set(places.tolist()))], -1)
        assert residual_4.shape[-2:] == (8, 8)
        copied = F.interpolate(residual_4, (12, 12), mode="nearest")
        up = F.interpolate(copied, (16, 16), mode="bilinear", align_corners=False)
        torch.testing.assert_close(after_5 - after_4, up, atol=1e-5, rtol=0)


class TestGuidance:
    @pytest.mark.parametrize("scale", [0, 2, 5])
    def test_stopping_equals_guidance_one_afterwards(self, flavour: Flavour, scale: int) -> None:
        scales = len(flavour.golden.schedule)
        listed = [3.0] * (scale + 1) + [1.0] * (scales - scale - 1)
        stopped = flavour.draw(policy=Policy(guidance=StopAt(scale)), guidance_scale=3.0)
        assert torch.equal(stopped.images, flavour.draw(guidance_scale=listed).images)
        assert [s.rows for s in stopped.traces[0].scales] == [2] * (scale + 1) + [1] * (scales - scale - 1)
        assert stopped.traces[0].stopped_after == scale

    def test_nothing_stops_after_the_last_scale(self, flavour_2b: Flavour) -> None:
        assert flavour_2b.draw(policy=Policy(guidance=StopAt(6))).traces[0].stopped_after is None
        assert flavour_2b.draw(policy="ld:stop_scales=5,delta=9,skip_last=1").traces[0].stopped_after is None

    def test_no_guidance_runs_one_row(self, flavour_2b: Flavour) -> None:
        trace = flavour_2b.draw(guidance_scale=1.0).traces[0]
        assert {scale.rows for scale in trace.scales} == {1}
        assert trace.row_tokens == trace.tokens == trace.tokens_full

    def test_guidance_gap_is_the_distance_of_the_branches(self, flavour_2b: Flavour) -> None:
        policy = Policy(guidance=SATS(0.0, (1, 2, 3, 4, 5)))
        run = run_loop(flavour_2b.pipe, flavour_2b.text, policy=policy)
        for k, scale in enumerate(run.image.trace):
            cond, uncond = (row[:, 1::2] - row[:, 0::2] for row in run.logits[k])
            assert scale.gap == pytest.approx(float((cond - uncond).square().mean().sqrt()), rel=1e-5)
        assert all(not scale.unconditional_stopped for scale in run.image.trace)  # nothing changes by less than 0


class TestBatches:
    def prompts(self, flavour: Flavour) -> list[torch.Tensor]:
        return [*flavour.golden.texts("batch"), *flavour.golden.texts("neg")]

    @pytest.mark.parametrize(
        "policy", [None, "ld", "ld-paper:fill=zero,energy_from=computed,rho=0.3", "top-k:score=random"]
    )
    def test_image_alone_and_in_a_batch(self, flavour: Flavour, policy: str | None) -> None:
        prompts = self.prompts(flavour)
        assert len({len(p) for p in prompts}) > 1
        together = flavour.draw(prompt_embeds=prompts, seed=[3, 1, 4], policy=policy)
        assert max(s.images_in_call for s in together.traces[0].scales) == 3
        for i, (prompt, seed) in enumerate(zip(prompts, [3, 1, 4], strict=True)):
            alone = flavour.draw(prompt_embeds=prompt, seed=seed, policy=policy)
            assert torch.equal(together.images[i], alone.images[0])
            assert [s.tokens for s in together.traces[i].scales] == [s.tokens for s in alone.traces[0].scales]

    def test_guidance_that_stops_for_one_image_only(self, flavour: Flavour) -> None:
        prompts = self.prompts(flavour)
        watch = (3, 4, 5)
        never = Policy(guidance=SATS(0.0, watch))
        traces = flavour.draw(prompt_embeds=prompts, seed=0, policy=never).traces
        least = []
        for trace in traces:
            gaps = [scale.gap for scale in trace.scales]
            least.append(min(abs(gaps[k] - gaps[k - 1]) / (gaps[k - 1] + 1e-6) for k in watch))
        lowest, second = sorted(least)[:2]
        policy = Policy(LHEP(scales=(6,)), SATS((lowest + second) / 2, watch))
        together = flavour.draw(prompt_embeds=prompts, seed=0, policy=policy)
        assert [t.stopped_after is not None for t in together.traces] == [value == lowest for value in least]
        for i, prompt in enumerate(prompts):
            alone = flavour.draw(prompt_embeds=prompt, seed=i, policy=policy)
            assert torch.equal(together.images[i], alone.images[0])

    def test_seeds_and_images_per_prompt(self, flavour_2b: Flavour) -> None:
        prompts = self.prompts(flavour_2b)[:2]
        result = flavour_2b.draw(prompt_embeds=prompts, num_images_per_prompt=2, seed=10)
        assert result.seeds == (10, 11, 12, 13)
        for i, seed in enumerate(result.seeds):
            alone = flavour_2b.draw(prompt_embeds=prompts[i // 2], seed=seed)
            assert torch.equal(result.images[i], alone.images[0])
        assert not torch.equal(result.images[0], result.images[1])

    def test_drawn_seeds_are_reported_and_reproduce(self, flavour_2b: Flavour) -> None:
        first = flavour_2b.draw(seed=None)
        assert torch.equal(first.images, flavour_2b.draw(seed=first.seeds[0]).images)

    @pytest.mark.parametrize("seed", [0, 2**32, 2**63 - 1])
    @pytest.mark.parametrize("policy", [None, "top-k:score=random"])
    def test_every_allowed_seed_draws(self, flavour_2b: Flavour, seed: int, policy: str | None) -> None:
        assert flavour_2b.draw(seed=seed, policy=policy).seeds == (seed,)

    def test_long_requests_are_split(self, flavour_2b: Flavour) -> None:
        prompts = self.prompts(flavour_2b)
        together = flavour_2b.draw(prompt_embeds=prompts, seed=0)
        pairs = Pipeline(flavour_2b.pipe.manifest, engines_of(flavour_2b.pipe), None, max_batch=2)
        seen: list[tuple[int, ...]] = []
        split = pairs(
            prompt_embeds=prompts,
            seed=0,
            output_type="latent",
            callback_on_scale=lambda event: seen.append(event.images),
        )
        assert torch.equal(split.images, together.images)
        assert set(seen) == {(0, 1), (2,)}

    def test_negative_prompts_one_for_all_or_one_each(self, flavour_2b: Flavour) -> None:
        prompts, negative = self.prompts(flavour_2b)[:2], flavour_2b.golden.texts("neg")[0]
        shared = flavour_2b.draw(prompt_embeds=prompts, negative_prompt_embeds=negative)
        listed = flavour_2b.draw(prompt_embeds=prompts, negative_prompt_embeds=[negative, negative])
        assert torch.equal(shared.images, listed.images)
        assert not torch.equal(shared.images, flavour_2b.draw(prompt_embeds=prompts).images)


class TestScales:
    @pytest.mark.parametrize("count", [1, 3, 6])
    def test_skipped_scales_are_never_computed(self, flavour: Flavour, count: int) -> None:
        schedule = flavour.golden.schedule
        result = flavour.draw(policy=Policy(skip_last=count))
        assert [s.scale for s in result.traces[0].scales] == list(range(len(schedule) - count))
        assert result.traces[0].tokens == schedule.offsets[-1 - count]
        assert result.traces[0].tokens_full == schedule.total_tokens
        assert result.images.shape[-2:] == flavour.golden.layout.latent_grid(schedule.final_grid)

    @pytest.mark.parametrize("ratio", TEMPLATES)
    def test_every_template_runs(self, small_pipe: Pipeline, ratio: float) -> None:
        height, width = sizes(small_pipe.manifest)[list(TEMPLATES).index(ratio)]
        by_ratio = small_pipe("a red star", aspect_ratio=ratio, seed=1, policy="ld")
        by_size = small_pipe("a red star", height=height, width=width, seed=1, policy="ld")
        assert by_ratio.images[0].size == (width, height)
        assert by_ratio.images[0].tobytes() == by_size.images[0].tobytes()

    def test_policy_object_and_its_text_are_the_same(self, flavour_2b: Flavour) -> None:
        as_text = flavour_2b.draw(policy="ld-paper:rho=0.4")
        assert torch.equal(as_text.images, flavour_2b.draw(policy=Policy(LHEP(0.4), SATS())).images)
        assert as_text.traces[0].policy == policy_text(Policy(LHEP(0.4), SATS()))
        assert torch.equal(flavour_2b.draw(policy=Policy()).images, flavour_2b.draw(policy="none").images)


class TestReleasedRows:
    def test_rows_that_stop_leave_the_cache(self, flavour_2b: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a stop the cache holds the other row alone, in the same memory; at the end all of it is free."""
        rows: list[tuple[int, int]] = []
        original = DynamicKVCache.reads

        def look(self: DynamicKVCache) -> list[dict[str, torch.Tensor]]:
            rows.append((self.rows, self._memory.data_ptr()))
            return original(self)

        monkeypatch.setattr(DynamicKVCache, "reads", look)
        flavour_2b.draw(policy=Policy(guidance=StopAt(3)))
        assert [count for count, _ in rows] == [2] * 4 + [1] * 3
        assert len({place for _, place in rows}) <= 2  # an arena, and a slot
        assert flavour_2b.pipe._memory.slots_taken == flavour_2b.pipe._memory.arenas_taken == 0

    def test_recalled_guidance_changes_only_what_follows_the_stop(self, flavour_2b: Flavour) -> None:
        base = "ld-paper:scales=,delta=9,stop_scales=4"
        plain, reuse = (flavour_2b.draw(policy=p, guidance_scale=3.0) for p in (base, base + ",then=reuse"))
        assert [s.rows for s in reuse.traces[0].scales] == [2] * 5 + [1] * 2
        assert not torch.equal(plain.images, reuse.images)
        assert torch.equal(plain.images, flavour_2b.draw(policy=Policy(guidance=StopAt(4)), guidance_scale=3.0).images)
        unguided = flavour_2b.draw(policy=base + ",then=reuse", guidance_scale=1.0)
        assert torch.equal(unguided.images, flavour_2b.draw(guidance_scale=1.0).images)

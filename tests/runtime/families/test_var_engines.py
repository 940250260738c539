"""VAR through real ONNX Runtime engines: the original's goldens, the masked oracle, policies, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from helpers.engine_runs import engines_of
from helpers.goldens import IMAGE, LATENT, SMOOTH
from helpers.var_samples import VAR_LOGITS, VarGolden, build_var_bundle
from ldp_runtime import SATS, Pipeline, Policy, StopAt, TopK
from ldp_runtime.errors import ConfigError
from ldp_runtime.families.choose import guidance_weights, placement
from ldp_runtime.families.var import CodebookCodec
from ldp_runtime.pipeline.batch import ImageSettings, ImageState
from ldp_runtime.pipeline.conditions import condition_rows
from ldp_runtime.pipeline.request import ImageRequest
from ldp_runtime.pipeline.run import Run
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.reference.oracle import pruned_var_logits
from ldp_export.reference.var import VarSettings, generate
from ldp_export.verification.forced import GivenMasks, OverheardBlocks, RecordedCodec

RUNS = ("greedy", "sampled", "smooth", "nocfg")


@pytest.fixture(scope="module")
def golden() -> VarGolden:
    return VarGolden()


@pytest.fixture(scope="module")
def pipe(bundles: Path, golden: VarGolden) -> Iterator[Pipeline]:
    with Pipeline.load(build_var_bundle(golden.sources, bundles / "var", chunk=3), threads=1) as opened:
        yield opened


@dataclass
class LoopRun:
    images: list[ImageState]
    logits: dict[int, torch.Tensor] = field(default_factory=dict)
    residuals: list[torch.Tensor] = field(default_factory=list)  # [B, h*w, C] of each scale


def run_loop(
    pipe: Pipeline,
    labels: Sequence[int],
    settings: VarSettings,
    *,
    forced: Sequence[torch.Tensor] | None = None,
    keep: Sequence[torch.Tensor | None] | None = None,
    policy: Policy | None = None,
) -> LoopRun:
    """Several classes in one batch, with noise from one stream as the original draws it; `forced` are [B, h*w]."""
    engines, schedule, B = engines_of(pipe), pipe.manifest.schedule(), len(labels)
    codec = engines.codec
    assert isinstance(codec, CodebookCodec)
    codec = replace(codec, more_smooth=settings.more_smooth)
    weights = guidance_weights(pipe.manifest.model, settings.guidance, len(schedule))
    guided = any(weight != 1 for weight in weights)
    generator = torch.Generator().manual_seed(settings.seed)
    batch = ScaleSchedule.of_grids(tuple((B * h, w) for h, w in schedule.grids))
    noise = [codec.draw_noise(generator, batch, k).unflatten(0, (B, -1)) for k in range(len(batch))]
    own = ImageSettings(
        codec if forced is None else RecordedCodec(codec),
        weights,
        (1.0,) * len(schedule),
        SamplingFilter(settings.top_k, settings.top_p),
        Policy(GivenMasks(keep)) if keep is not None else policy or Policy(),
    )
    images = []
    for i in range(B):
        drawn = [part[i] for part in (noise if forced is None else forced)]
        images.append(ImageState(own, schedule, settings.seed, drawn, codec.empty_latent(schedule), guided))
    found = LoopRun(images)
    requests = [
        ImageRequest(
            label, None, 0, schedule, weights, own.temperature, own.filter, own.policy, own.temperature, len(schedule)
        )
        for label in labels
    ]
    run = Run(
        OverheardBlocks(engines.blocks, found.logits.__setitem__),
        placement(pipe.manifest.model, engines.constants, schedule),
        images,
        condition_rows(engines, pipe.manifest, None, requests),
    )
    while not run.is_done:
        found.residuals.append(torch.stack([image.residual.flatten(1).T for image in run.step()]))
    return found


def draw(pipe: Pipeline, **options):
    return pipe(**{"class_labels": 3, "output_type": "latent", "seed": 7} | options)


class TestGoldens:
    @pytest.mark.parametrize("name", ["greedy", "sampled", "nocfg"])
    def test_raw_logits_teacher_forced(self, pipe: Pipeline, golden: VarGolden, name: str) -> None:
        expected, scales = golden.arrays(f"run_{name}"), len(pipe.manifest.schedule())
        forced = [expected[f"idx_{k}"].long() for k in range(scales)]
        run = run_loop(pipe, golden.labels, golden.settings(name), forced=forced)
        compared = 0
        for k in range(scales):
            for rows, branch in ((slice(0, 2), "cond"), (slice(2, 4), "uncond")):
                key = f"logits_raw_{branch}_{k}"
                if key in expected and len(run.logits[k][rows]):
                    torch.testing.assert_close(run.logits[k][rows], expected[key], atol=VAR_LOGITS, rtol=0)
                    compared += 1
        assert compared >= 2

    @pytest.mark.parametrize("name", RUNS)
    def test_free_runs_draw_the_same_indices_and_images(self, pipe: Pipeline, golden: VarGolden, name: str) -> None:
        expected, codebook = golden.arrays(f"run_{name}"), golden.vae.quantize.embedding.weight
        run = run_loop(pipe, golden.labels, golden.settings(name))
        if name != "smooth":  # whose codes are mixtures
            for k, codes in enumerate(run.residuals):
                assert torch.equal(codes, codebook[expected[f"idx_{k}"].long()]), f"scale {k}"
        latents = torch.stack([image.latent for image in run.images])
        tolerance = SMOOTH if name == "smooth" else 2 * LATENT
        torch.testing.assert_close(latents, expected["fhat_final"], atol=tolerance, rtol=0)
        images = torch.cat(pipe._decode(engines_of(pipe), latents)[0])
        in_half = expected["img_float01"].dtype != torch.float32
        tolerance = SMOOTH if name == "smooth" else 1e-3 if in_half else IMAGE
        torch.testing.assert_close((images + 1) / 2, expected["img_float01"].float(), atol=tolerance, rtol=0)

    @pytest.mark.parametrize(("smooth", "guidance", "top_k"), [(False, 4.0, 0), (True, 1.5, 50), (False, 0.0, 100)])
    def test_pipeline_alone_equals_the_original_loop(
        self, pipe: Pipeline, golden: VarGolden, smooth: bool, guidance: float, top_k: int
    ) -> None:
        settings = VarSettings(guidance, top_k, 0.96, 11, smooth)
        expected = generate(golden.transformer, golden.vae, [7], settings).accumulated[-1]
        got = draw(
            pipe,
            class_labels=7,
            guidance_scale=guidance,
            top_k=top_k,
            top_p=0.96,
            seed=11,
            more_smooth=smooth,
        )
        torch.testing.assert_close(got.images, expected, atol=SMOOTH if smooth else 2 * LATENT, rtol=0)


class TestPruned:
    @pytest.mark.parametrize("seed", range(3))
    def test_any_masks_equal_the_masked_oracle(self, pipe: Pipeline, golden: VarGolden, seed: int) -> None:
        schedule, config = pipe.manifest.schedule(), golden.transformer.config
        expected = golden.arrays("run_sampled")
        indices = [expected[f"idx_{k}"][0].long() for k in range(len(schedule))]
        generator = torch.Generator().manual_seed(seed)
        shares = [1.0, *torch.rand(len(schedule) - 1, generator=generator).tolist()]
        shares[1 + seed] = 0.0  # nothing is left of one scale
        keep = [
            torch.nonzero(torch.rand(n, generator=generator) < s)[:, 0]
            for n, s in zip(schedule.tokens, shares, strict=True)
        ]
        masks = [None, *keep[1:]]
        labels = torch.tensor([golden.labels[0], config.classes])
        oracle = pruned_var_logits(golden.transformer, golden.vae, labels, indices, masks)
        run = run_loop(
            pipe,
            golden.labels[:1],
            golden.settings("sampled"),
            forced=[i[None] for i in indices],
            keep=masks,
        )
        for k, logits in enumerate(oracle):
            if logits.shape[1]:
                torch.testing.assert_close(run.logits[k], logits, atol=VAR_LOGITS, rtol=0)
            else:
                assert k not in run.logits

    @pytest.mark.parametrize("fill", ["repeat", "zero"])
    def test_pruning_nothing_is_bit_identical_to_the_full_model(self, pipe: Pipeline, fill: str) -> None:
        everything = Policy(TopK(1.0, scales=(2, 5, 6), fill=fill))  # type: ignore[arg-type]
        assert torch.equal(draw(pipe, policy=everything).images, draw(pipe).images)

    @pytest.mark.parametrize("policy", ["ld", "ld-skip-2", "ld-fast:p=0.3", "top-k:score=random"])
    def test_policies_compute_less_and_draw_something(self, pipe: Pipeline, policy: str) -> None:
        result = draw(pipe, policy=policy)
        assert result.traces[0].tokens < result.traces[0].tokens_full
        assert result.images.isfinite().all()
        assert all(s.score is not None for s in result.traces[0].scales if s.kept is not None)

    def test_skipped_scales_are_never_computed(self, pipe: Pipeline) -> None:
        trace = draw(pipe, policy=Policy(skip_last=2)).traces[0]
        assert [scale.scale for scale in trace.scales] == list(range(5))


class TestGuidance:
    @pytest.mark.parametrize("scale", [0, 3])
    def test_stopping_equals_guidance_one_afterwards(self, pipe: Pipeline, scale: int) -> None:
        weights = [1 + 4.0 * k / 6 for k in range(7)]
        listed = [*weights[: scale + 1], *[1.0] * (6 - scale)]
        stopped = draw(pipe, policy=Policy(guidance=StopAt(scale)), guidance_scale=4.0)
        assert torch.equal(stopped.images, draw(pipe, guidance_scale=listed).images)
        assert [s.rows for s in stopped.traces[0].scales][scale + 1 :] == [1] * (6 - scale)

    def test_the_ramp_begins_without_guidance_and_zero_is_none(self, pipe: Pipeline) -> None:
        guided, plain = draw(pipe, guidance_scale=4.0).traces[0], draw(pipe, guidance_scale=0).traces[0]
        assert [s.guided for s in guided.scales] == [False, *[True] * 6]
        assert {s.rows for s in guided.scales} == {2}  # the first scale's keys and values serve the others
        assert {s.rows for s in plain.scales} == {1}

    def test_gap_is_the_distance_of_the_branches(self, pipe: Pipeline) -> None:
        """Over all pairs of codes, how differently the branches tell them apart."""
        policy = Policy(guidance=SATS(0.0, (1, 2, 3, 4, 5)))
        run = run_loop(pipe, [3], VarSettings(4.0), policy=policy)
        for k in (0, 4):
            difference = (run.logits[k][0] - run.logits[k][1]).double()
            pairs = difference[:, :, None] - difference[:, None, :]
            codes = difference.shape[1]
            mean = pairs.square().sum() / (codes * (codes - 1) * len(difference))
            assert run.images[0].trace[k].gap == pytest.approx(float(mean.sqrt()), rel=1e-4)

    def test_sats_stops_the_unconditional_branch(self, pipe: Pipeline) -> None:
        trace = draw(pipe, policy="ld:scales=,delta=9,stop_scales=3").traces[0]
        assert trace.stopped_after == 3
        assert [scale.rows for scale in trace.scales] == [2, 2, 2, 2, 1, 1, 1]


class TestBatches:
    @pytest.mark.parametrize("policy", [None, "ld", "ld:fill=zero,energy_from=computed,rho=0.3"])
    def test_image_alone_and_in_a_batch(self, pipe: Pipeline, policy: str | None) -> None:
        together = draw(pipe, class_labels=[3, 19, 3], seed=[5, 6, 8], policy=policy)
        assert max(s.images_in_call for s in together.traces[0].scales) == 3
        for i, (label, seed) in enumerate(((3, 5), (19, 6), (3, 8))):
            alone = draw(pipe, class_labels=label, seed=seed, policy=policy)
            assert torch.equal(together.images[i], alone.images[0])

    def test_images_previews_and_warmup(self, pipe: Pipeline) -> None:
        sizes = []
        result = pipe(class_labels=[0, 1], seed=1, callback_on_scale=lambda event: sizes.append(event.preview().size))
        pipe.warmup(2)
        assert [image.size for image in result.images] == [(128, 128)] * 2
        assert set(sizes) == {(128, 128)}


class TestRequests:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"class_labels": 20}, "no class 20"),
            ({"class_labels": [0, -1]}, "no class -1"),
            ({"class_labels": []}, "empty"),
            ({"class_labels": None}, "needs class_labels"),
            ({"class_labels": "dog"}, "a whole number"),
            ({"class_labels": 1.5}, "a whole number"),
            ({"prompt": "a dog"}, "reads no text, but prompt was given"),
            ({"negative_prompt": "a dog"}, "reads no text, but negative_prompt"),
            ({"aspect_ratio": 1.5}, "square images only"),
            ({"height": 64, "width": 128}, "height / width = 0.5"),
            ({"guidance_scale": float("nan")}, "finite"),
            ({"guidance_scale": [1.0, 2.0]}, "2 values"),
        ],
    )
    def test_refused(self, pipe: Pipeline, options: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            draw(pipe, **options)

    def test_text_models_refuse_classes_and_mixtures(self, small_pipe: Pipeline) -> None:
        with pytest.raises(ConfigError, match="texts, not classes"):
            small_pipe("a red star", class_labels=3)
        with pytest.raises(ConfigError, match="draws bits"):
            small_pipe("a red star", more_smooth=True)

    def test_square_sizes_are_served(self, pipe: Pipeline) -> None:
        for options in ({"aspect_ratio": 1.0}, {"height": 128, "width": 128}):
            assert torch.equal(draw(pipe, **options).images, draw(pipe).images)


@pytest.mark.parametrize("smooth", [False, True])
def test_counter_noise(pipe: Pipeline, smooth: bool) -> None:
    """Draws from the codebook, and mixtures of it, by place: whatever the batch and the policy."""
    counting = Pipeline(pipe.manifest.model_copy(update={"noise": "counter"}), engines_of(pipe), None, 4)
    together = draw(counting, class_labels=[3, 5, 3], more_smooth=smooth, policy="ld").images
    for i, label in enumerate((3, 5, 3)):
        single = draw(counting, class_labels=label, seed=7 + i, more_smooth=smooth, policy="ld").images
        assert torch.equal(single[0], together[i])
    assert not torch.equal(together[0], together[2])
    assert not torch.equal(together[0], draw(pipe, more_smooth=smooth, policy="ld").images[0])
    everything = draw(counting, more_smooth=smooth, policy=Policy(TopK(1.0, scales=(1, 2)))).images
    assert torch.equal(everything, draw(counting, more_smooth=smooth).images)

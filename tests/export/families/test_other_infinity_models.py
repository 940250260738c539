"""Checkpoints of other sizes in the same layouts: reference model and engines agree without a code change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.engine_runs import engines_of, run_loop
from helpers.goldens import LATENT
from helpers.goldens import RAW_LOGITS as LOGITS
from helpers.samples import build_bundle, random_texts, write_sources
from ldp_runtime import Pipeline
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.infinity import load_infinity, load_infinity_vae
from ldp_export.checkpoints.sources import Sources
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.sizes import InfinityConfig, InfinityVaeConfig
from ldp_export.reference.infinity import InfinityRun, InfinitySettings, generate
from ldp_export.reference.oracle import pruned_infinity_logits

#: Three blocks in as many chunks, one head, patchify with an odd number of bits, few text tokens.
PATCHED = (
    InfinityConfig(3, 24, 1, 40, bits=12, text_channels=20, text_tokens=13, levels=10, pool_heads=3, chunks=3),
    InfinityVaeConfig(bits=3, base_channels=24, channel_multipliers=(1, 2), res_blocks=2, stride=2),
    2,
)
#: One block, many heads, wide text, no chunks in the key names.
FLAT = (
    InfinityConfig(1, 96, 8, 128, bits=5, text_channels=48, text_tokens=32, levels=13, pool_heads=6, chunks=1),
    InfinityVaeConfig(bits=5, base_channels=32, channel_multipliers=(1,), res_blocks=1, stride=1),
    None,
)
SCHEDULES = {
    "square": ScaleSchedule.of_size("0.06M"),
    "wide": ScaleSchedule.of_size("0.06M", 0.333),
    "tall, longer": ScaleSchedule.of_size("0.25M", 2.0),
    "own grids": ScaleSchedule.of_grids([[1, 1], [2, 3], [5, 5], [7, 9]]),
    "one scale": ScaleSchedule.of_grids([[1, 1]]),
}


class Sample:
    def __init__(self, sources: Sources, pipe: Pipeline) -> None:
        self.pipe = pipe
        self.transformer: InfinityTransformer = load_infinity(sources.transformer)
        self.vae = load_infinity_vae(sources.vae)
        (self.text,) = random_texts([7], self.transformer.config.text_channels)

    def reference(self, schedule: ScaleSchedule) -> InfinityRun:
        settings = InfinitySettings(2.5, 0.7, SamplingFilter(900, 0.97), seed=3)
        return generate(self.transformer, [self.text], schedule, self.pipe.manifest.model.layout, settings)


@pytest.fixture(scope="module", params=[PATCHED, FLAT], ids=["patched", "flat"])
def sample(request: pytest.FixtureRequest, bundles: Path) -> Iterator[Sample]:
    transformer, vae, chunk = request.param
    folder = bundles / f"other_{transformer.depth}"
    sources = write_sources(folder / "sources", transformer, vae)
    spec = infer_spec(sources)
    assert (spec.transformer, spec.vae) == (transformer, vae)
    small = replace(spec, size="0.06M", guidance=2.0, temperature=0.7)
    bundle = build_bundle(sources, folder / "bundle", small, chunk)
    with Pipeline.load(bundle, threads=1) as pipe:
        yield Sample(sources, pipe)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_engines_equal_the_reference_model(sample: Sample, schedule: ScaleSchedule) -> None:
    expected = sample.reference(schedule)
    forced = [bits[0] for bits in expected.bits]
    run = run_loop(sample.pipe, sample.text, schedule=schedule, guidance=2.5, temperature=0.7, bits=forced)
    for k in range(len(schedule)):
        torch.testing.assert_close(run.logits[k], expected.raw_logits[k], atol=LOGITS, rtol=0)
    torch.testing.assert_close(run.image.latent, expected.latent[0], atol=LATENT, rtol=0)
    free = run_loop(sample.pipe, sample.text, schedule=schedule, guidance=2.5, temperature=0.7, seed=3)
    torch.testing.assert_close(free.image.latent, expected.latent[0], atol=LATENT, rtol=0)


@pytest.mark.parametrize("name", ["wide", "own grids"])
def test_pruned_engines_equal_the_masked_oracle(sample: Sample, name: str) -> None:
    schedule, layout = SCHEDULES[name], sample.pipe.manifest.model.layout
    forced = [bits[0] for bits in sample.reference(schedule).bits]
    generator = torch.Generator().manual_seed(5)
    keep = [None, *(torch.nonzero(torch.rand(n, generator=generator) < 0.4)[:, 0] for n in schedule.tokens[1:])]
    rows = torch.stack((sample.text, sample.transformer.unconditional_text(7)))
    expected = pruned_infinity_logits(sample.transformer, rows, forced, keep, schedule, layout)
    run = run_loop(sample.pipe, sample.text, schedule=schedule, bits=forced, keep=keep)
    for k, logits in run.logits.items():
        torch.testing.assert_close(logits, expected[k], atol=LOGITS, rtol=0)


def test_decoder_on_any_grid(sample: Sample) -> None:
    stride, channels = sample.vae.config.stride, sample.vae.config.bits
    for h, w in ((2, 3), (2, 7), (12, 5)):
        latent = torch.randn(2, channels, h, w, generator=torch.Generator().manual_seed(h))
        image = torch.empty(2, 3, h * stride, w * stride)
        engines_of(sample.pipe).decoder.run({"latent": latent}, {"image": image})
        torch.testing.assert_close(image, sample.vae.decode(latent), atol=1e-4, rtol=0)


def test_pictures_of_every_policy(sample: Sample) -> None:
    for policy in (None, "ld", "ld-skip-2", "top-k:score=variance", "top-k:score=distance", "none:stop=2"):
        result = sample.pipe(prompt_embeds=[sample.text, sample.text[:3]], seed=1, aspect_ratio=1.5, policy=policy)
        side = sample.pipe.manifest.model.pixels_per_token
        assert [image.size for image in result.images] == [(14 * side, 21 * side)] * 2


def test_longest_text(sample: Sample) -> None:
    config = sample.transformer.config
    (text,) = random_texts([config.text_tokens], config.text_channels)
    assert sample.pipe(prompt_embeds=text, seed=1, output_type="latent").images.isfinite().all()

"""Engines that PyTorch compiles for the GPU of this machine, ahead and where they are loaded: as in service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.samples import TRANSFORMER, random_texts, spec, write_sources
from ldp_runtime import Pipeline, Policy, StopAt, TopK, open_bundle
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.manifest import Precision, QuantizedPrecision, QuantizedScales
from ldp_runtime.engines.torch_compiled.target import local_target

from ldp_export.builders.torch_compiled.builder import TorchBuilder
from ldp_export.building.build import BuildOptions, build, plan_build
from ldp_export.building.choose_builder import QUANTIZED_SHARE
from ldp_export.models.sizes import InfinityVaeConfig
from ldp_export.verification.verify import verify_bundle

#: Precision of the graphs, and of blocks at last scales.
PRECISIONS: list[tuple[Precision, QuantizedPrecision | None]] = [
    ("float32", None),
    ("bfloat16", None),
    ("bfloat16", "int8"),
    ("bfloat16", "float8"),
]


@pytest.fixture(scope="module", params=PRECISIONS, ids=str)
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Two narrow blocks; `build` has verified them on this GPU, or this fixture fails."""
    folder = tmp_path_factory.mktemp("torch")
    transformer = replace(TRANSFORMER, width=128, chunks=1)
    vae = InfinityVaeConfig(bits=8, base_channels=32, channel_multipliers=(1, 1), res_blocks=1, stride=2)
    sources = write_sources(folder, transformer, vae)
    precision, bits = request.param
    if bits == "float8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU multiplies no 8-bit floats")
    quantized = None if bits is None else QuantizedScales(precision=bits, share=QUANTIZED_SHARE)
    builder = TorchBuilder("cuda", fused=True, quantized=quantized)
    options = BuildOptions(folder / "bundle", precision=precision, builder=builder)
    bundle, _ = build(plan_build(spec(transformer, vae), sources, options))
    assert bundle.state == "verified"
    return bundle


@pytest.fixture(scope="module")
def pipe(engines: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(engines, device="cuda", max_batch=2) as pipe:
        yield pipe


def test_names_its_gpu_and_verifies_from_the_bundle_alone(engines: Bundle) -> None:
    assert engines.manifest.target == local_target(torch.device("cuda"))
    assert verify_bundle(open_bundle(engines.folder), "cuda").state == "verified"


@pytest.mark.parametrize("policy", [None, "ld", "skip:count=1,stop_after=3"])
def test_the_same_seed_gives_the_same_picture(pipe: Pipeline, policy: str | None) -> None:
    """Launched kernel by kernel, while graphs are captured, and replayed: the first, the second, the others."""
    texts = random_texts([7])
    drawn = [pipe(prompt_embeds=texts, seed=5, policy=policy, output_type="latent").images for _ in range(4)]
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_graphs_are_replayed(pipe: Pipeline) -> None:
    """Captured when a call comes back; from then on every image replays as many and none is captured anew."""
    counters, seen = pipe.cuda_graphs, []
    assert counters is not None
    for seed in range(5):
        pipe(prompt_embeds=random_texts([7]), seed=seed, output_type="latent")
        seen.append((counters.captures, counters.replays))
    assert seen[-1][0] == seen[-2][0] > 0
    assert seen[-1][1] - seen[-2][1] == seen[-2][1] - seen[-3][1] > 0


def test_graphs_serve_other_texts(pipe: Pipeline) -> None:
    """Of about the same length: they are padded. A picture does not depend on what was drawn before it."""
    counters, texts = pipe.cuda_graphs, random_texts([7, 11, 3])
    assert counters is not None
    for _ in range(3):
        pipe(prompt_embeds=texts[0], seed=1, output_type="latent")
    captures = counters.captures
    first = [pipe(prompt_embeds=text, seed=1, output_type="latent").images for text in texts]
    again = [pipe(prompt_embeds=text, seed=1, output_type="latent").images for text in reversed(texts)]
    assert counters.captures == captures
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_device_times_are_in_the_trace(pipe: Pipeline) -> None:
    (trace,) = pipe(prompt_embeds=random_texts([7]), seed=0, output_type="torch").traces
    assert all(scale.blocks_s > 0 for scale in trace.scales)


def test_late_calls_of_few_tokens(pipe: Pipeline) -> None:
    """CUDA's integer products take at least 17 rows; a pruned scale may have fewer."""
    policy = Policy(TopK((0.05, 0.02), score="random", fill="zero"), StopAt(3))
    drawn = pipe(prompt_embeds=random_texts([7]), seed=2, policy=policy, output_type="latent")
    assert drawn.traces[0].scales[-1].tokens < 17
    assert drawn.images.isfinite().all()


def test_pruned_and_batched(pipe: Pipeline) -> None:
    result = pipe(prompt_embeds=random_texts([3, 11]), seed=1, policy="ld", output_type="latent")
    assert result.images.isfinite().all()
    assert all(trace.tokens < trace.tokens_full for trace in result.traces)


def test_every_shape_of_picture(pipe: Pipeline) -> None:
    for ratio in (1 / 3, 3.0):
        drawn = pipe(prompt_embeds=random_texts([4]), seed=0, aspect_ratio=ratio, output_type="torch").images
        assert drawn.isfinite().all()


def test_memory_does_not_grow(pipe: Pipeline) -> None:
    used = []
    for i in range(6):
        pipe(prompt_embeds=random_texts([7]), seed=i, output_type="latent")
        used.append(torch.cuda.memory_allocated())
    assert used[-1] <= used[2] * 1.05 + 2**20


def test_closes(engines: Bundle, tmp_path: Path) -> None:
    before = torch.cuda.memory_allocated()
    pipe = Pipeline.load(engines, device="cuda")
    pipe(prompt_embeds=random_texts([4]), seed=0, output_type="latent")
    pipe.close()
    pipe.close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_after_warmup_nothing_is_captured(engines: Bundle) -> None:
    with Pipeline.load(engines, device="cuda") as warm:
        warm.warmup()
        counters = warm.cuda_graphs
        assert counters is not None
        captures = counters.captures
        warm(prompt_embeds=random_texts([7]), seed=4, output_type="latent")
        assert counters.captures == captures > 0


def test_closing_one_pipeline_leaves_the_graphs_of_another(engines: Bundle, pipe: Pipeline) -> None:
    """CUDA's libraries hold memory for each stream that graphs were captured on; it goes with the graphs."""
    with Pipeline.load(engines, device="cuda") as first:
        for _ in range(3):
            first(prompt_embeds=random_texts([7]), seed=5, output_type="latent")
        with Pipeline.load(engines, device="cuda") as second:
            before = [second(prompt_embeds=random_texts([7]), seed=5, output_type="latent").images for _ in range(3)]
            first.close()
            torch.cuda.empty_cache()
            taken = torch.full((64, 2**20), float("nan"), device="cuda")  # where freed memory was
            after = second(prompt_embeds=random_texts([7]), seed=5, output_type="latent").images
            del taken
    assert all(torch.equal(after, other) for other in before)


def test_calls_inside_and_outside_of_inference_mode(engines: Bundle) -> None:
    with Pipeline.load(engines, device="cuda") as own:
        drawn = []
        for inside in (True, True, True, False, True):
            with torch.inference_mode(inside):
                drawn.append(own(prompt_embeds=random_texts([7]), seed=5, output_type="latent").images.clone())
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second GPU")
def test_on_another_gpu_than_the_current_one(engines: Bundle, pipe: Pipeline) -> None:
    with Pipeline.load(engines, device="cuda:1") as far:
        for seed in range(4):
            here, there = (p(prompt_embeds=random_texts([7]), seed=seed, output_type="latent") for p in (pipe, far))
            torch.testing.assert_close(here.images.cpu(), there.images.cpu(), atol=1e-3, rtol=1e-3)

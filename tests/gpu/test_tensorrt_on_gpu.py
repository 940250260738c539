"""TensorRT and TensorRT-RTX on the GPU of this machine: built here, verified here, and driven as in service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import Golden
from helpers.samples import random_texts, spec
from ldp_runtime import LHEP, SATS, Pipeline, Policy, open_bundle
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines.hardware import local_capability
from ldp_runtime.engines.tensorrt.library import is_installed, load_library
from ldp_runtime.errors import CapacityError, ConfigError

from ldp_export.building.build import BuildOptions, build, plan_build
from ldp_export.building.choose_builder import BackendOptions, choose_builder
from ldp_export.checkpoints.sources import Sources
from ldp_export.verification.verify import verify_bundle


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def backend(request: pytest.FixtureRequest) -> Any:
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    targets = load_library(request.param).targets
    if targets and local_capability() not in targets:
        pytest.skip(f"{request.param} does not serve this GPU")
    return request.param


@pytest.fixture(scope="module")
def engines(backend: Any, golden_2b: Golden, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small 2B-like model; `build` has verified it on this GPU, or this fixture fails."""
    model = spec(golden_2b.transformer.config, golden_2b.vae.config)
    sources = Sources(golden_2b.weights / "transformer.safetensors", golden_2b.weights / "vae.safetensors")
    builder = choose_builder(BackendOptions(backend), model, model.size, "float32")
    output = tmp_path_factory.mktemp(backend)
    bundle, report = build(plan_build(model, sources, BuildOptions(output, builder=builder)))
    assert report is not None
    assert bundle.state == "verified"
    return bundle


def test_in_place_cache(backend: Any, golden_2b: Golden, tmp_path: Path) -> None:
    """`build` compares it with the reference runs on this GPU."""
    model = spec(golden_2b.transformer.config, golden_2b.vae.config)
    sources = Sources(golden_2b.weights / "transformer.safetensors", golden_2b.weights / "vae.safetensors")
    builder = choose_builder(BackendOptions(backend), model, model.size, "float32")
    bundle, _ = build(plan_build(model, sources, BuildOptions(tmp_path, builder=builder, kv_cache="static")))
    assert (bundle.state, bundle.manifest.kv_cache) == ("verified", "static")


@pytest.fixture
def pipe(engines: Bundle) -> Iterator[Pipeline]:
    with Pipeline.load(engines, device="cuda", max_batch=2) as pipe:
        yield pipe


def texts(engines: Bundle, lengths: list[int]) -> list[torch.Tensor]:
    return random_texts(lengths, engines.manifest.model.text_channels)  # type: ignore[union-attr]


def test_verifies_from_the_bundle_alone(engines: Bundle) -> None:
    assert verify_bundle(open_bundle(engines.folder), "cuda").state == "verified"


def test_the_same_seed_gives_the_same_picture(engines: Bundle, pipe: Pipeline) -> None:
    """Also while early scales go from plain calls to captured ones to replays."""
    drawn = [pipe(prompt_embeds=texts(engines, [7]), seed=5, output_type="latent").images for _ in range(4)]
    assert all(torch.equal(drawn[0], other) for other in drawn[1:])


def test_early_scales_are_replayed_within_their_bound(backend: str, engines: Bundle, pipe: Pipeline) -> None:
    for _ in range(4):
        pipe(prompt_embeds=texts(engines, [7]), seed=5, output_type="latent")
    counters = pipe.cuda_graphs
    assert counters is not None
    if backend == "tensorrt":
        assert counters.captures > 0
        assert counters.replays > 0
    else:  # the library captures by itself
        assert counters.captures == 0


def test_pruned_and_batched(engines: Bundle, pipe: Pipeline) -> None:
    result = pipe(prompt_embeds=texts(engines, [3, 11]), seed=1, policy=Policy(LHEP(), SATS()), output_type="latent")
    assert result.images.isfinite().all()
    assert all(trace.tokens < trace.tokens_full for trace in result.traces)


def test_every_shape_of_picture(engines: Bundle, pipe: Pipeline) -> None:
    for ratio in (1 / 3, 1.0, 3.0):
        assert (
            pipe(prompt_embeds=texts(engines, [4]), seed=0, aspect_ratio=ratio, output_type="torch")
            .images.isfinite()
            .all()
        )


def test_memory_does_not_grow(engines: Bundle, pipe: Pipeline) -> None:
    used = []
    for i in range(6):
        pipe(prompt_embeds=texts(engines, [3 + i]), seed=i, output_type="latent")
        used.append(torch.cuda.memory_allocated())
    assert used[-1] <= used[2] * 1.05 + 2**20


def test_refusals_leave_it_usable(engines: Bundle, pipe: Pipeline) -> None:
    longest = engines.manifest.limits.text_tokens
    with pytest.raises((ConfigError, CapacityError)):
        pipe(prompt_embeds=texts(engines, [longest + 1]), seed=0)
    with pytest.raises(ConfigError, match="rows"):
        Pipeline.load(engines, device="cuda", max_batch=engines.manifest.limits.rows)
    assert pipe(prompt_embeds=texts(engines, [longest]), seed=0, output_type="latent").images.isfinite().all()


def test_closes(engines: Bundle, tmp_path: Path) -> None:
    before = torch.cuda.memory_allocated()
    pipe = Pipeline.load(engines, device="cuda")
    pipe(prompt_embeds=texts(engines, [4]), seed=0, output_type="latent")
    pipe.close()
    pipe.close()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before + 2**20

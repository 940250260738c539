"""A decoder in 8-bit integers: close to the float one, proven by verify, on any processor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.engine_runs import engines_of
from helpers.samples import TRANSFORMER, spec, write_sources
from helpers.shared import build_shared
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines import onnxruntime
from ldp_runtime.errors import ConfigError

from ldp_export.bench.plan import label
from ldp_export.builders.onnxruntime import Int8Builder
from ldp_export.builders.torch_compiled.builder import TorchBuilder
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.building.choose_builder import BackendOptions, choose_builder, default_precision
from ldp_export.building.stages import BuildStages
from ldp_export.checkpoints.sources import Sources
from ldp_export.models.sizes import InfinityVaeConfig


@pytest.fixture(scope="module")
def quantized(small_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    sources = Sources(small_sources.transformer, small_sources.vae)
    output = tmp_path_factory.mktemp("int8") / "bundle"
    return build_shared(plan_build(spec(), sources, BuildOptions(output, builder=Int8Builder(decoder=True))))[0]


def test_only_the_decoder_is_quantized_and_verify_says_by_how_much(quantized: Bundle):
    assert quantized.state == "verified"
    assert [name for name, graph in quantized.manifest.graphs.items() if graph.quantized] == ["decoder"]
    assert quantized.root is not None
    report = (quantized.root / "reports" / f"{quantized.manifest.version}.json").read_text()
    assert "decoder in 8-bit integers, RMS" in report


def test_same_bits_and_nearly_the_same_pixels(quantized: Bundle, small_bundle: Bundle):
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    results = []
    for bundle in (quantized, small_bundle):
        with Pipeline.load(bundle, threads=1) as pipe:
            latent, image = (
                pipe(prompt_embeds=features, seed=3, output_type=kind).images for kind in ("latent", "torch")
            )
            results.append((latent, image))
    (our_latent, our_image), (latent, image) = results
    assert torch.equal(our_latent, latent)
    error = (our_image - image).square().mean().sqrt()
    assert 0 < error < 0.03


def test_where_a_bundle_without_one_was_published(small_sources: Sources, tmp_path: Path):
    """The exported decoder is then linked into a version: another name of its weights, which onnx refuses to read."""
    sources = Sources(small_sources.transformer, small_sources.vae)
    build_shared(plan_build(spec(), sources, BuildOptions(tmp_path)))
    bundle, _ = build_shared(plan_build(spec(), sources, BuildOptions(tmp_path, builder=Int8Builder(decoder=True))))
    assert bundle.manifest.graphs["decoder"].quantized
    assert not list((tmp_path / "stages").glob(".tmp-*"))


def test_sums_of_two_products_fit_in_16_bits(quantized: Bundle):
    """As processors without VNNI add them up, and saturate: 255 is the largest activation."""
    model = onnx.load(quantized.path("decoder/model.onnx"))
    integers = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    weights = [w for w in integers if w.ndim == 4]
    largest = max(int(np.abs(w.astype(int)).max()) for w in weights)
    assert len(weights) == sum(node.op_type == "Conv" for node in model.graph.node)
    assert 60 <= largest <= 32767 // (2 * 255)


def test_ranges_are_those_of_the_bundle_s_own_runs(small_sources: Sources, tmp_path: Path):
    """Which other sampling changes, though nothing else of the decoder."""
    sources, plans = Sources(small_sources.transformer, small_sources.vae), []
    for temperature in (1.0, 0.5):
        model = replace(spec(), temperature=temperature)
        plans.append(plan_build(model, sources, BuildOptions(tmp_path, builder=Int8Builder(decoder=True))))
    first, second = ({s.name: s.key for s in BuildStages(plan).stages()} for plan in plans)
    assert first["decoder"] == second["decoder"]
    assert first["reference"] != second["reference"]
    assert first["decoder.engine"] != second["decoder.engine"]


def test_engines_for_gpus_have_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldp_export.building.choose_builder.local_capability", lambda: "9.0")
    for backend in ("torch", "tensorrt", "tensorrt-rtx"):
        with pytest.raises(ConfigError, match=f"{backend} on a GPU has no decoder in 8-bit"):
            choose_builder(BackendOptions(backend, int8_decoder=True), spec(), "0.06M", "float32")


def test_precision_where_none_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldp_export.building.choose_builder.local_capability", lambda: None)
    assert [default_precision(b) for b in ("onnxruntime", "torch", "tensorrt-rtx")] == ["float32"] * 2 + ["bfloat16"]
    monkeypatch.setattr("ldp_export.building.choose_builder.local_capability", lambda: "9.0")
    assert [default_precision(b) for b in ("onnxruntime", "torch")] == ["float32", "bfloat16"]


def test_beside_blocks_that_pytorch_compiled_in_bfloat16(tmp_path: Path):
    """The decoder is quantised from float32, whatever the precision of the other graphs."""
    vae = InfinityVaeConfig(bits=8, base_channels=32, channel_multipliers=(1, 1), res_blocks=1, stride=2)
    transformer = replace(TRANSFORMER, depth=1, chunks=1)
    sources = write_sources(tmp_path, transformer, vae)
    builder = TorchBuilder(int8=Int8Builder(decoder=True))
    options = BuildOptions(tmp_path / "bundle", builder=builder, precision="bfloat16")
    bundle, _ = build_shared(plan_build(spec(transformer, vae), sources, options))
    files = {name: Path(graph.file).name for name, graph in bundle.manifest.graphs.items()}
    assert bundle.state == "verified"
    assert files == {"prompt": "engine.pt2", "blocks": "engine.pt2", "decoder": "model.onnx"}
    assert [name for name, graph in bundle.manifest.graphs.items() if graph.quantized] == ["decoder"]
    assert label(bundle.manifest) == "torch, bfloat16, int8 decoder"
    with Pipeline.load(bundle, threads=1) as pipe:
        assert isinstance(engines_of(pipe).decoder, onnxruntime.OnnxRuntimeEngine)
        drawn = pipe(prompt_embeds=torch.randn(5, 32), seed=3, policy="ld", output_type="torch").images
        assert drawn.isfinite().all()


def test_bfloat16_that_would_be_emulated_is_refused(monkeypatch: pytest.MonkeyPatch):
    """On a CPU; before an hour of compiling for engines that are slower than what they replace."""
    monkeypatch.setattr("ldp_export.building.choose_builder.local_capability", lambda: None)

    def can(*features: str) -> BackendOptions:
        monkeypatch.setattr("ldp_runtime.engines.hardware.cpu_features", lambda: frozenset(features))
        return BackendOptions("torch")

    with pytest.raises(ConfigError, match=r"this processor \(avx2\) has no bfloat16"):
        choose_builder(can("sse2", "avx2"), spec(), "0.06M", "bfloat16")
    for features in (("sse2", "avx2", "avx512f", "avx512_bf16"), ()):
        assert isinstance(choose_builder(can(*features), spec(), "0.06M", "bfloat16"), TorchBuilder)


def test_choice():
    chosen = choose_builder(BackendOptions(int8_decoder=True), spec(), "0.06M", "float32")
    assert chosen == Int8Builder(decoder=True)

"""A decoder in 8-bit integers: close to the float one, proven by verify, refused where it would overflow."""

import pytest
import torch
from ldp_runtime import Pipeline
from ldp_runtime.bundle import Bundle
from ldp_runtime.engines import onnxruntime
from ldp_runtime.errors import ConfigError, IncompatibleBundleError
from samples import spec

from ldp_export.build import BuildOptions, build, plan_build
from ldp_export.builders.choice import BackendOptions, choose_builder
from ldp_export.builders.int8_decoder import Int8DecoderBuilder
from ldp_export.models.sources import Sources

needs_vnni = pytest.mark.skipif(
    any(f.startswith("sse") for f in onnxruntime.cpu_features())
    and not any("vnni" in f for f in onnxruntime.cpu_features()),
    reason="the processor has no VNNI instructions",
)


@pytest.fixture(scope="module")
def quantized(small_sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    sources = Sources(small_sources.transformer, small_sources.vae)
    output = tmp_path_factory.mktemp("int8") / "bundle"
    return build(plan_build(spec(), sources, BuildOptions(output, builder=Int8DecoderBuilder())))[0]


@needs_vnni
def test_only_the_decoder_is_quantized_and_verify_says_by_how_much(quantized: Bundle):
    assert quantized.state == "verified"
    assert [name for name, graph in quantized.manifest.graphs.items() if graph.quantized] == ["decoder"]
    assert quantized.root is not None
    report = (quantized.root / "reports" / f"{quantized.manifest.version}.json").read_text()
    assert "decoder in 8-bit integers, RMS" in report


@needs_vnni
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


def test_a_processor_whose_products_overflow_is_refused(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    graph = small_bundle.manifest.graphs["decoder"].model_copy(update={"quantized": True})
    monkeypatch.setattr(onnxruntime, "cpu_features", lambda: frozenset({"sse2", "avx2"}))
    with pytest.raises(IncompatibleBundleError, match=r"decoder multiply 8-bit integers.*no VNNI"):
        onnxruntime.check_integers({"decoder": graph})
    monkeypatch.setattr(onnxruntime, "cpu_features", lambda: frozenset({"sse2", "avx512_vnni"}))
    onnxruntime.check_integers({"decoder": graph})


def test_other_backends_have_none():
    with pytest.raises(ConfigError, match="torch has no decoder in 8-bit"):
        choose_builder(BackendOptions("torch", int8_decoder=True), spec(), "0.06M", "float32")


def test_choice():
    chosen = choose_builder(BackendOptions(int8_decoder=True), spec(), "0.06M", "float32")
    assert chosen == Int8DecoderBuilder()

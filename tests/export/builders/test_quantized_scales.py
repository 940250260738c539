"""Blocks in 8 bits at last scales: the other scales stay as they are, verify says by how much, and fails closed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from helpers.engine_runs import run_loop
from helpers.samples import TRANSFORMER, random_inputs, random_texts, random_transformer, spec
from helpers.shared import build_shared
from helpers.var_samples import VAR_MODELS
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import REFERENCE, Bundle
from ldp_runtime.bundle.manifest import FUSED_WEIGHTS, FileEntry, GraphEntry, QuantizedPrecision, QuantizedScales
from ldp_runtime.engines.torch_compiled.fused.engine import FusedEngine
from ldp_runtime.engines.torch_compiled.fused.products import KINDS
from ldp_runtime.engines.torch_compiled.fused.weights import in_8_bits, named_tensors, read_weights
from ldp_runtime.errors import ConfigError, VerificationError

from ldp_export.bench.plan import label
from ldp_export.builders import quantize as int8_blocks
from ldp_export.builders.base import ExportedGraph
from ldp_export.builders.onnxruntime import Int8Builder, OnnxRuntimeBuilder
from ldp_export.builders.torch_compiled.builder import TorchBuilder
from ldp_export.builders.torch_compiled.fused import fused_weights
from ldp_export.building.build import BuildOptions, build, plan_build
from ldp_export.building.choose_builder import QUANTIZED_SHARE, BackendOptions, choose_builder
from ldp_export.building.estimate import estimate_build
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.sources import Sources
from ldp_export.families.infinity import InfinityFamily
from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.graphs.signature import MODEL_FILE, tensor_entries
from ldp_export.reference.quantized import products_in_8_bits
from ldp_export.verification.cases import ReferenceCases
from ldp_export.verification.rounding import quantized_rounding

QUANTIZED = QuantizedScales(precision="int8", share=QUANTIZED_SHARE)
#: Of the seven scales of the small models.
EARLY, QUANTIZED_SCALES = range(4), range(4, 7)


@pytest.fixture(scope="module")
def sources(small_sources: Sources) -> Sources:
    return Sources(small_sources.transformer, small_sources.vae)


@pytest.fixture(scope="module")
def bundle(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    options = BuildOptions(
        tmp_path_factory.mktemp("quantized") / "bundle", builder=Int8Builder(quantized=QUANTIZED), chunk=1
    )
    return build_shared(plan_build(spec(), sources, options))[0]


def report_of(bundle: Bundle) -> dict[str, Any]:
    assert bundle.root is not None
    return json.loads((bundle.root / "reports" / f"{bundle.manifest.version}.json").read_text())


def test_a_second_engine_of_each_chunk(bundle: Bundle) -> None:
    manifest = bundle.manifest
    quantized = {name: graph for name, graph in manifest.graphs.items() if graph.quantized}
    assert bundle.state == "verified"
    assert list(quantized) == ["last_blocks_0_1", "last_blocks_1_2"]
    assert [(g.first, g.last) for g in manifest.chunks("blocks", "last")] == [(0, 1), (1, 2)]
    assert set(manifest.quantized_scales(manifest.schedule())) == set(QUANTIZED_SCALES)
    assert label(manifest) == "onnxruntime, int8 last scales"
    exact, rounded = (_bytes(manifest.files, name) for name in ("blocks_0_1", "last_blocks_0_1"))
    assert rounded < 0.6 * exact


def _bytes(files: dict[str, FileEntry], folder: str) -> int:
    return sum(entry.size for name, entry in files.items() if name.startswith(f"{folder}/"))


def test_sums_of_two_products_fit_in_16_bits(bundle: Bundle, tmp_path: Path) -> None:
    """As processors without VNNI add them up, and saturate: 255 is the largest activation."""
    for chunk in bundle.manifest.chunks("blocks", "last"):
        copy = tmp_path / Path(chunk.file).parent.name  # onnx refuses weights with several hard links
        shutil.copytree(bundle.path(chunk.file).parent, copy)
        model = onnx.load(copy / MODEL_FILE)
        weights = [onnx.numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("_quantized")]
        assert len(weights) == sum(node.op_type == "MatMulInteger" for node in model.graph.node) > 0
        assert 60 <= max(int(np.abs(w.astype(int)).max()) for w in weights) <= 32767 // (2 * 255)


def test_verify_tells_them_from_the_exact_ones(bundle: Bundle) -> None:
    names = [check["name"] for check in report_of(bundle)["checks"]]
    for k in EARLY:
        assert f"ratio1_guidance3, scale {k}, logits" in names
    for k in QUANTIZED_SCALES:
        assert f"ratio1_guidance3, scale {k}, logits in 8 bits, RMS" in names
    assert not any("drawn freely" in name for name in names)


def test_only_quantized_scales_change(bundle: Bundle, small_bundle: Bundle) -> None:
    (text,), runs = random_texts([5]), []
    for each in (bundle, small_bundle):
        with Pipeline.load(each, threads=1) as pipe:
            runs.append(run_loop(pipe, text, quantized=pipe.manifest.scale_sets(pipe.manifest.schedule())))
    ours, theirs = (run.logits for run in runs)
    for k in EARLY:
        torch.testing.assert_close(ours[k], theirs[k], atol=2e-5, rtol=0)
    change = (ours[4] - theirs[4]).norm() / theirs[4].norm()
    assert 1e-4 < change < 0.01


@pytest.mark.parametrize("policy", [None, "ld", "skip:count=1,stop_after=2"])
def test_an_image_does_not_depend_on_the_others_of_its_call(bundle: Bundle, policy: str | None) -> None:
    """Engines take their ranges from all rows of a call, so last scales run image by image."""
    texts = random_texts([5, 9])
    with Pipeline.load(bundle, threads=1, max_batch=2) as pipe:
        both = pipe(prompt_embeds=texts, seed=[3, 8], policy=policy, output_type="latent")
        alone = pipe(prompt_embeds=[texts[1]], seed=8, policy=policy, output_type="latent")
    torch.testing.assert_close(both.images[1], alone.images[0], atol=1e-5, rtol=0)
    quantized = [scale.images_in_call for scale in both.traces[0].scales if scale.scale in QUANTIZED_SCALES]
    assert set(quantized) == {1}


def test_wrong_ones_are_rejected(sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are a third too large: the exact blocks are right, and the bundle is no good."""

    quantize = int8_blocks.quantize_products

    def too_large(source: Path, target: Path) -> None:
        quantize(source, target)
        model = onnx.load(target)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("blocks.") and tensor.name.endswith("_scale"):
                tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 4 / 3, tensor.name))
        onnx.save(model, target)

    monkeypatch.setattr(int8_blocks, "quantize_products", too_large)
    with pytest.raises(VerificationError, match="scale 4, logits in 8 bits, RMS"):
        build(plan_build(spec(), sources, BuildOptions(tmp_path / "bundle", builder=Int8Builder(quantized=QUANTIZED))))


def test_graph_without_known_products_is_refused(small_bundle: Bundle, tmp_path: Path) -> None:
    """Not shipped as it is under the name of an engine in 8 bits."""
    with pytest.raises(ValueError, match=r"none of its .* matrix products has a weight of a block"):
        int8_blocks.quantize_products(small_bundle.path("prompt/model.onnx"), tmp_path / "model.onnx")


def test_checked_at_the_first_scales_where_only_these_are_recorded(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of models too large to be run to the end."""
    monkeypatch.setattr(InfinityFamily, "_recorded_scales", 3)
    bundle, _ = build_shared(
        plan_build(spec(), sources, BuildOptions(tmp_path / "bundle", builder=Int8Builder(quantized=QUANTIZED)))
    )
    checks = {check["name"]: check["measured"] for check in report_of(bundle)["checks"]}
    named = [f"blocks of the last scales at scale {k}, logits in 8 bits, RMS" for k in range(4)]
    assert [name in checks for name in named] == [True] * 3 + [False]
    assert checks[named[2]] > 1e-4


def test_keys_and_values_in_place_and_a_quantized_decoder(sources: Sources, tmp_path: Path) -> None:
    builder = Int8Builder(decoder=True, quantized=QuantizedScales(precision="int8", share=0.45))
    options = BuildOptions(tmp_path / "bundle", builder=builder, kv_cache="static", discard_graphs=True)
    bundle, _ = build_shared(plan_build(spec(), sources, options))
    assert label(bundle.manifest) == "onnxruntime, int8 last scales, int8 decoder"
    assert bundle.manifest.scale_sets(bundle.manifest.schedule()) == {6: "last"}
    assert not list((tmp_path / "bundle" / "stages").glob("blocks-*"))
    with Pipeline.load(bundle, threads=1) as pipe:
        assert pipe(prompt_embeds=random_texts([4]), seed=0, policy="ld", output_type="torch").images.isfinite().all()


def test_class_conditional(tmp_path: Path) -> None:
    held = VAR_MODELS["one AdaLN for all blocks"]
    sources = held.write(tmp_path)
    options = BuildOptions(tmp_path / "bundle", builder=Int8Builder(quantized=QUANTIZED))
    bundle, _ = build_shared(plan_build(infer_spec(sources), sources, options))
    assert bundle.state == "verified"
    assert max(c["measured"] for c in report_of(bundle)["checks"] if "in 8 bits" in c["name"]) > 1e-4
    with Pipeline.load(bundle, threads=1) as pipe:
        drawn = pipe(class_labels=[1, 2], seed=0, policy="skip:count=1", output_type="torch").images
        assert drawn.isfinite().all()


def test_what_it_takes_is_predicted(sources: Sources, tmp_path: Path) -> None:
    plain, quantized = (
        estimate_build(plan_build(spec(), sources, BuildOptions(tmp_path / "bundle", builder=builder)))
        for builder in (Int8Builder(decoder=True), Int8Builder(decoder=True, quantized=QUANTIZED))
    )
    assert quantized.bundle > plain.bundle
    assert quantized.disk > plain.disk
    assert quantized.device_memory > plain.device_memory


def logits_of(
    graph: InfinityBlocksGraph, inputs: dict[str, torch.Tensor], precision: QuantizedPrecision, compiled: bool
) -> torch.Tensor:
    """What the fused engine in 8 bits gives."""
    inside, outside = (tensor_entries(specs) for specs in (graph.signature.inputs, graph.signature.outputs))
    entry = GraphEntry(kind="blocks", file="", inputs=inside, outputs=outside, last=graph.last)
    weights = in_8_bits(fused_weights(graph), KINDS[precision])
    engine = FusedEngine("last_blocks", weights, entry, tokens=8, text_tokens=8, threads=1, compiled=compiled)
    rows, tokens = inputs["latents"].shape[:2]
    logits = torch.empty(rows, tokens, 2 * TRANSFORMER.bits)
    engine.run(inputs, {"logits": logits})
    return logits


def test_rounding_of_a_model_that_its_blocks_hardly_move(bundle: Bundle) -> None:
    """The limit is the model's own, far below what a trained one needs."""
    reference = ReferenceCases.load(bundle.path(REFERENCE))
    measured = [c["measured"] / c["limit"] for c in report_of(bundle)["checks"] if "in 8 bits" in c["name"]]
    assert 1e-4 < reference.rounding[quantized_rounding(4)] < 0.01
    assert 0.1 < max(measured) < 1


@pytest.mark.parametrize("precision", get_args(QuantizedPrecision))
def test_emulated_as_the_fused_engine_computes(precision: QuantizedPrecision) -> None:
    """What bounds the engines is their own arithmetic, not another one."""
    graph = InfinityBlocksGraph(random_transformer())
    inputs = random_inputs(graph)
    exact = graph(*inputs.values())[0]
    with products_in_8_bits(graph.blocks, precision):
        expected = graph(*inputs.values())[0]
    found = logits_of(graph, inputs, precision, compiled=False)
    assert (found - expected).norm() < 0.1 * (found - exact).norm()


@pytest.mark.parametrize("precision", get_args(QuantizedPrecision))
def test_fused_engine_from_its_file(tmp_path: Path, precision: QuantizedPrecision) -> None:
    """Of PyTorch's blocks on a GPU: rounded when they are built, and a file of its own."""
    graph = InfinityBlocksGraph(random_transformer())
    builder = TorchBuilder(fused=True, quantized=QuantizedScales(precision=precision, share=QUANTIZED_SHARE))
    exact, quantized = graph.signature, graph.signature.quantized()
    assert [builder.engine_file(signature) for signature in (exact, quantized)] == [FUSED_WEIGHTS] * 2
    assert builder.key(exact) != builder.key(quantized)
    for signature in (exact, quantized):
        (tmp_path / signature.name).mkdir()
        exported = ExportedGraph(signature, tmp_path, lambda: graph, tmp_path)
        builder.build(exported, tmp_path / signature.name, lambda detail: None)
    weights = read_weights("last_blocks", tmp_path / quantized.name / FUSED_WEIGHTS, 2, torch.device("cpu"))
    rounded = in_8_bits(fused_weights(graph), KINDS[precision])
    for mine, theirs in zip(named_tensors(weights), named_tensors(rounded), strict=True):
        assert mine[0] == theirs[0]
        assert mine[1].dtype == theirs[1].dtype
        assert torch.equal(mine[1].float(), theirs[1].float())
    sizes = [(tmp_path / name / FUSED_WEIGHTS).stat().st_size for name in (exact.name, quantized.name)]
    assert sizes[1] < 0.4 * sizes[0]


def test_fused_engine_compiled() -> None:
    graph = InfinityBlocksGraph(random_transformer())
    inputs = random_inputs(graph)
    plain, compiled = (logits_of(graph, inputs, "int8", compiled) for compiled in (False, True))
    assert (compiled - plain).norm() < 0.1 * (plain - graph(*inputs.values())[0]).norm()


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(precision: str = "float32", model: Any = None, **options: Any) -> Any:
        return choose_builder(BackendOptions(**options), model or spec(), "0.06M", precision)

    assert chosen(quantize="int8") == Int8Builder(quantized=QUANTIZED)
    assert chosen(quantize="int8", quantize_share=0.5).quantized.share == 0.5
    assert isinstance(chosen(), OnnxRuntimeBuilder)
    refused: list[tuple[str, str, dict[str, Any]]] = [
        ("belongs to --quantize", "float32", {"quantize_share": 0.5}),
        ("between 0 and 1, got 1", "float32", {"quantize": "int8", "quantize_share": 1.0}),
        ("between 0 and 1, got 0", "float32", {"quantize": "int8", "quantize_share": 0.0}),
        ("no 8-bit floats", "float32", {"quantize": "float8"}),
        ("not from float16", "float16", {"quantize": "int8"}),
        ("torch on a CPU has no blocks in 8 bits", "float32", {"backend": "torch", "quantize": "int8"}),
    ]
    monkeypatch.setattr("ldp_export.building.choose_builder.local_capability", lambda: None)
    for message, precision, options in refused:
        with pytest.raises(ConfigError) as caught:
            chosen(precision, **options)
        assert message in str(caught.value), message


def test_float8_into_float32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the export: most GPUs refuse it in their first call."""
    monkeypatch.setattr("ldp_export.building.choose_builder.local_capability", lambda: "8.9")
    with pytest.raises(ConfigError, match="bfloat16 or float16, not float32"):
        choose_builder(BackendOptions("torch", quantize="float8"), spec(), "0.06M", "float32")


def test_choice_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_export.building.choose_builder.check_compilers", lambda on_gpu: None)
    for capability, precision, fits in (("9.0", "float8", True), ("8.0", "int8", True), ("8.0", "float8", False)):
        monkeypatch.setattr("ldp_export.building.choose_builder.local_capability", lambda here=capability: here)
        options = BackendOptions("torch", quantize=precision)  # pyright: ignore[reportArgumentType]
        if fits:
            builder = choose_builder(options, spec(), "0.06M", "bfloat16")
            assert isinstance(builder, TorchBuilder)
            assert builder.quantized is not None
        else:
            with pytest.raises(ConfigError, match=r"capability 8\.0 multiplies no 8-bit floats"):
                choose_builder(options, spec(), "0.06M", "bfloat16")

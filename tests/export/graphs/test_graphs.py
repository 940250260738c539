"""Graphs one by one: ONNX Runtime, eager, and what export refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers.graph_inputs import random_inputs
from helpers.samples import TRANSFORMER, VAE
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine
from ldp_runtime.errors import ExportError, IncompatibleBundleError, IntegrityError, LdpError
from torch import nn

from ldp_export.bench.worker.eager import EagerEngine
from ldp_export.checkpoints.infinity import load_infinity, load_infinity_vae
from ldp_export.checkpoints.sources import Sources
from ldp_export.graphs.graph import Graph
from ldp_export.graphs.infinity import (
    InfinityBlocksGraph,
    InfinityDecoderGraph,
    InfinityPromptGraph,
    infinity_blocks_signature,
)
from ldp_export.graphs.onnx import export_graph
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec


@pytest.fixture(scope="module")
def engines(small_bundle: Bundle) -> dict[str, Engine]:
    names = small_bundle.manifest.graphs
    return {name: OnnxRuntimeEngine(name, small_bundle.path(g.file), threads=1) for name, g in names.items()}


def compare(engine: Engine, module: nn.Module, signature: GraphSignature, sizes: dict[Axis, int]) -> None:
    """All outputs of both; their shapes are those of the signature."""
    inputs = random_inputs(signature, sizes)
    eager = EagerEngine(signature.name, module, signature.input_names, signature.output_names)
    results = []
    for each in (engine, eager):
        outputs = {spec.name: torch.empty(spec.at(sizes)) for spec in signature.outputs}
        each.run(inputs, outputs)
        results.append(outputs)
    for name, expected in results[1].items():
        torch.testing.assert_close(results[0][name], expected, atol=1.2e-5, rtol=1e-5, msg=f"{name} at {sizes}")


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 0, 1), (2, 1, 0, 16), (1, 4, 1, 3), (3, 7, 5, 9), (2, 256, 265, 16), (8, 36, 21, 2), (1, 2, 600, 5)],
)
def test_blocks(engines: dict[str, Engine], small_sources: Sources, sizes: tuple[int, int, int, int]) -> None:
    graph = InfinityBlocksGraph(load_infinity(small_sources.transformer))
    axes = dict(zip((Axis.ROWS, Axis.TOKENS, Axis.PAST, Axis.TEXT), sizes, strict=True))
    compare(engines["blocks"], graph, graph.signature, axes)


@pytest.mark.parametrize(("rows", "text"), [(1, 1), (2, 16), (7, 5)])
def test_prompt(engines: dict[str, Engine], small_sources: Sources, rows: int, text: int) -> None:
    graph = InfinityPromptGraph(load_infinity(small_sources.transformer))
    compare(engines["prompt"], graph, graph.signature, {Axis.ROWS: rows, Axis.TEXT: text})


def test_masked_text_is_not_seen(engines: dict[str, Engine]) -> None:
    """Padding keys and values under a False mask change nothing, whatever they hold."""
    signature = infinity_blocks_signature(TRANSFORMER, 0, TRANSFORMER.depth)
    inputs = random_inputs(signature, {Axis.ROWS: 2, Axis.TOKENS: 3, Axis.PAST: 4, Axis.TEXT: 6})
    inputs["text_mask"][:] = True
    inputs["text_mask"][1, 4:] = False
    results = []
    for padding in (0.0, 50.0):
        for name, tensor in inputs.items():
            if name.startswith("text_k") or name.startswith("text_v"):
                tensor[1, :, 4:] = padding
        logits = torch.empty(2, 3, 2 * TRANSFORMER.bits)
        engines["blocks"].run(inputs, {"logits": logits})
        results.append(logits)
    assert torch.equal(*results)


def test_outputs_without_a_place_are_not_computed(engines: dict[str, Engine]) -> None:
    signature = infinity_blocks_signature(TRANSFORMER, 0, TRANSFORMER.depth)
    inputs = random_inputs(signature, {Axis.ROWS: 1, Axis.TOKENS: 3, Axis.PAST: 4, Axis.TEXT: 6})
    alone, new_k = torch.empty(1, 3, 2 * TRANSFORMER.bits), torch.empty(3, 1, 4, 16)
    engines["blocks"].run(inputs, {"logits": alone})
    together = torch.empty_like(alone)
    engines["blocks"].run(inputs, {"logits": together, "new_k_1": new_k})
    assert torch.equal(alone, together)


def test_manifest_states_the_signatures(small_bundle: Bundle) -> None:
    entry = small_bundle.manifest.graphs["blocks"]
    signature = infinity_blocks_signature(TRANSFORMER, 0, TRANSFORMER.depth)
    assert [tensor.name for tensor in entry.inputs] == signature.input_names
    assert entry.inputs[0].shape == ("rows", "tokens", TRANSFORMER.bits)


class TestEngineErrors:
    def test_closed(self, small_bundle: Bundle) -> None:
        engine = OnnxRuntimeEngine("decoder", small_bundle.path("decoder/model.onnx"), threads=1)
        engine.close()
        with pytest.raises(LdpError, match="closed"):
            engine.run({}, {})

    def test_wrong_shapes_name_graph_and_inputs(self, engines: dict[str, Engine]) -> None:
        with pytest.raises(LdpError, match=r"'decoder' failed with inputs .*\(1, 3, 4, 4\)"):
            engines["decoder"].run({"latent": torch.zeros(1, 3, 4, 4)}, {"image": torch.zeros(1, 3, 16, 16)})

    def test_no_model(self, tmp_path: Path) -> None:
        with pytest.raises(IntegrityError, match="cannot load"):
            OnnxRuntimeEngine("decoder", tmp_path / "absent.onnx")

    def test_weights_missing_beside_the_graph(self, small_bundle: Bundle, tmp_path: Path) -> None:
        (tmp_path / "model.onnx").write_bytes(small_bundle.path("decoder/model.onnx").read_bytes())
        with pytest.raises(LdpError):
            OnnxRuntimeEngine("decoder", tmp_path / "model.onnx")

    @pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
    @pytest.mark.parametrize("device", ["cuda", "meta"])
    def test_devices_that_are_not_here(self, small_bundle: Bundle, device: str) -> None:
        with pytest.raises(IncompatibleBundleError):
            OnnxRuntimeEngine("decoder", small_bundle.path("decoder/model.onnx"), device)


class Toy(Graph):
    """Two inputs of [rows, 4]."""

    def __init__(self) -> None:
        specs = (TensorSpec("a", (Axis.ROWS, 4)), TensorSpec("b", (Axis.ROWS, 4)))
        super().__init__(GraphSignature("toy", specs, (TensorSpec("c", (Axis.ROWS, 4)),)))


class IgnoresAnInput(Toy):
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return tensors[0] * 2


class LooksAtValues(Toy):
    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return tensors[0] if bool(tensors[1].sum() > 0) else tensors[1]


@pytest.mark.parametrize(
    ("module", "message"),
    [(IgnoresAnInput(), r"does not use its inputs"), (LooksAtValues(), "could not export the graph 'toy'")],
)
def test_what_cannot_be_exported(module: Graph, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_graph(module, tmp_path)
    assert not (tmp_path / "model.onnx").exists()


def test_exported_weights_stay_beside_the_graph(small_bundle: Bundle, small_sources: Sources) -> None:
    """Initializers point into safetensors: no second copy of a weight, and none under an anonymous name."""
    import onnx
    from safetensors import safe_open

    path = small_bundle.path("decoder/model.onnx")
    model = onnx.load(path, load_external_data=False)
    outside = {i.name: {e.key: e.value for e in i.external_data} for i in model.graph.initializer if i.external_data}
    with safe_open(path.parent / "weights.safetensors", framework="pt") as file:
        assert set(outside) <= set(file.keys())
    assert {entry["location"] for entry in outside.values()} == {"weights.safetensors"}
    assert path.stat().st_size < 200_000
    module = InfinityDecoderGraph(load_infinity_vae(small_sources.vae))
    assert module.signature.inputs[0].shape[1] == VAE.bits


def test_chunks_pass_hidden_states_on() -> None:
    first, last = infinity_blocks_signature(TRANSFORMER, 0, 1), infinity_blocks_signature(TRANSFORMER, 1, 2)
    assert {"latents", "offset"} <= set(first.input_names)
    assert "hidden_out" in first.output_names
    assert "hidden" in last.input_names
    assert "head_modulation" in last.input_names
    assert last.output_names == ["logits", "new_k_1", "new_v_1"]

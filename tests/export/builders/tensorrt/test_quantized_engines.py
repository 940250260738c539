"""Engines with 8-bit numbers, built by TensorRT-RTX without a GPU: for the cards that multiply them, and smaller."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.samples import TRANSFORMER, spec
from helpers.schedules import all_schedules
from ldp_runtime.bundle.manifest import QuantizedScales

from ldp_export.builders.base import ExportedGraph
from ldp_export.builders.tensorrt.builder import ENGINE_FILE, LAYERS_FILE, TensorRtBuilder
from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.graphs.onnx import export_graph
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.quantization.ranges import Ranges, quantized_layers

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")

#: Wide enough for weights to outweigh an engine's code: two blocks of 12 x 512 x 512.
WIDE = replace(TRANSFORMER, width=512, heads=8, ffn=2048)
PRODUCTS = 6 * WIDE.depth
AMPERE, ADA, BLACKWELL = "8.6", "8.9", "12.0"


def builder(targets: tuple[str, ...], scales: QuantizedScales | None = None, weights: bool = False) -> TensorRtBuilder:
    made = TensorRtBuilder(
        "tensorrt-rtx", targets, all_schedules("0.06M"), spec().layout, buckets=1, max_rows=2, text_tokens=16
    )
    return replace(made, quantized=scales, weights_in_8_bits=weights)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> ExportedGraph:
    torch.manual_seed(0)
    model = InfinityTransformer(WIDE).eval().requires_grad_(False)
    made, folder = InfinityBlocksGraph(model, precision="bfloat16"), tmp_path_factory.mktemp("graph")
    export_graph(made, folder / "graph")
    Ranges({name: torch.rand(layer.in_features) * 4 for name, layer in quantized_layers(model.blocks).items()}).save(
        folder
    )

    def no_module() -> InfinityBlocksGraph:
        raise AssertionError("TensorRT builds from the ONNX file")

    return ExportedGraph(made.signature, folder / "graph", no_module, folder, folder)


def build(chosen: TensorRtBuilder, graph: ExportedGraph, folder: Path) -> tuple[Counter[str], int]:
    """Layers that the engine was built from, and its size."""
    folder.mkdir()
    chosen.build(graph, folder, lambda line: None)
    assert {path.name for path in folder.parent.iterdir() if path.is_dir()} <= {folder.name, "plain"}  # no copy is left
    return Counter(json.loads((folder / LAYERS_FILE).read_text())), (folder / ENGINE_FILE).stat().st_size


@no_gpu
@pytest.mark.parametrize(
    ("precision", "target"),
    [("int8", AMPERE), ("int8", ADA), ("int8", BLACKWELL), ("float8", ADA), ("float8", BLACKWELL)],
)
def test_products_in_8_bits(graph: ExportedGraph, tmp_path: Path, precision: str, target: str) -> None:
    """Every product of a block has both pairs, and its weight takes one byte in the engine."""
    scales = QuantizedScales.model_validate({"precision": precision, "share": 0.85, "ranges": "static"})
    chosen = builder((target,), scales)
    plain, whole = build(chosen, graph, tmp_path / "plain")
    late = replace(graph, signature=graph.signature.quantized())
    layers, size = build(chosen, late, tmp_path / "quantized")
    assert (layers["QUANTIZE"], layers["DEQUANTIZE"]) == (PRODUCTS, 2 * PRODUCTS)
    assert plain["QUANTIZE"] == plain["DEQUANTIZE"] == 0
    assert layers["MATRIX_MULTIPLY"] == plain["MATRIX_MULTIPLY"]
    assert size < 0.75 * whole
    assert chosen.key(late.signature) != chosen.key(graph.signature)


@no_gpu
def test_weights_alone(graph: ExportedGraph, tmp_path: Path) -> None:
    """For every card at once."""
    targets = (AMPERE, ADA, BLACKWELL)
    weights = replace(graph, ranges=None)
    _, whole = build(builder(targets), weights, tmp_path / "plain")
    layers, size = build(builder(targets, weights=True), weights, tmp_path / "rounded")
    assert (layers["QUANTIZE"], layers["DEQUANTIZE"]) == (0, PRODUCTS)
    assert size < 0.75 * whole

"""Q/DQ graphs: their float32 twins in ONNX Runtime give what the reference model gives in the same 8-bit numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.samples import TRANSFORMER, random_inputs, random_transformer
from ldp_runtime.engines.onnxruntime import import_onnxruntime
from ldp_runtime.errors import EngineBuildError, IntegrityError
from torch import nn

from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.graphs.onnx import WEIGHTS_FILE, export_graph
from ldp_export.graphs.signature import MODEL_FILE
from ldp_export.quantization.formats import FORMATS, SEVEN_BITS, Format
from ldp_export.quantization.insert import insert_products
from ldp_export.quantization.ranges import Ranges, quantized_layers, watched
from ldp_export.reference.quantized import (
    RoundedWeights,
    StaticProducts,
    products_in_8_bits,
    round_weights,
)

#: Products of a block: queries, keys and values; after self-attention; of cross-attention; of the feed-forward.
PRODUCTS = 6


def ranges_of(blocks: nn.Module, graph: InfinityBlocksGraph, inputs: dict[str, torch.Tensor]) -> Ranges:
    with watched(blocks) as ranges:
        graph(*inputs.values())
    return ranges()


def run(folder: Path, inputs: dict[str, torch.Tensor], optimized: bool) -> torch.Tensor:
    """First output. Without optimization the pairs are computed as floats; with it integers are multiplied."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in inputs.items()})[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graph")
    export_graph(InfinityBlocksGraph(random_transformer()), folder)
    return folder


@pytest.mark.parametrize(("form", "optimized"), [("int8", False), ("float8", False), ("seven", False), ("seven", True)])
def test_equals_the_reference_in_the_same_numbers(exported: Path, tmp_path: Path, form: str, optimized: bool) -> None:
    """To float32's rounding; the few inputs that lie on the edge of two numbers may fall to either side."""
    chosen = SEVEN_BITS if form == "seven" else FORMATS["int8" if form == "int8" else "float8"]
    graph = InfinityBlocksGraph(random_transformer())
    inputs = random_inputs(graph)
    ranges = ranges_of(graph.blocks, graph, inputs)
    exact = graph(*inputs.values())[0]
    with products_in_8_bits(graph.blocks, StaticProducts(chosen, ranges)):
        expected = graph(*inputs.values())[0]
    assert insert_products(exported, tmp_path, ranges, 0, chosen) == PRODUCTS * TRANSFORMER.depth
    found = run(tmp_path, inputs, optimized)
    assert (found - expected).norm() < 0.05 * (expected - exact).norm()
    assert (expected - exact).norm() > 1e-4 * exact.norm()


def test_weights_alone(exported: Path, tmp_path: Path) -> None:
    """Products are float32: all that is left is the order of their sums."""
    model = random_transformer()
    graph = InfinityBlocksGraph(model)
    inputs = random_inputs(graph)
    exact = graph(*inputs.values())[0]
    insert_products(exported, tmp_path, None, 0, FORMATS["int8"])
    round_weights(graph.blocks, RoundedWeights(FORMATS["int8"]), "float32", mapped=False)
    expected = graph(*inputs.values())[0]
    for optimized in (False, True):
        torch.testing.assert_close(run(tmp_path, inputs, optimized), expected, atol=2e-5, rtol=0)
    assert (expected - exact).abs().max() > 1e-3
    names = [node.op_type for node in onnx.load(tmp_path / MODEL_FILE, load_external_data=False).graph.node]
    assert names.count("DequantizeLinear") == PRODUCTS * TRANSFORMER.depth
    assert "QuantizeLinear" not in names


def test_ranges_are_those_of_the_inputs() -> None:
    graph = InfinityBlocksGraph(random_transformer())
    inputs, seen = random_inputs(graph), dict[str, torch.Tensor]()

    def note(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            seen[name] = args[0].flatten(0, -2).abs().amax(dim=0)

        return hook

    layers = quantized_layers(graph.blocks)
    called = {name: layer for name, layer in layers.items() if not name.endswith("mat_qkv")}  # whose weight is read
    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in called.items()]
    found = ranges_of(graph.blocks, graph, inputs)
    for hook in hooks:
        hook.remove()
    assert len(layers) == PRODUCTS * TRANSFORMER.depth
    assert set(found.magnitudes) == set(layers)
    for name in called:
        assert torch.equal(found.magnitudes[name], seen[name])


def test_merged_ranges_hold_each_part() -> None:
    a, b = Ranges({"0.x": torch.tensor([1.0, 5.0])}), Ranges({"0.x": torch.tensor([3.0, 2.0])})
    assert torch.equal(Ranges.merged([a, b]).magnitudes["0.x"], torch.tensor([3.0, 5.0]))


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_ranges_of_no_model_are_refused(tmp_path: Path, wrong: float) -> None:
    Ranges({"0.x": torch.tensor([1.0, wrong])}).save(tmp_path)
    with pytest.raises(IntegrityError, match=r"0\.x"):
        Ranges.load(tmp_path)


def test_a_layer_whose_range_is_missing_is_refused(exported: Path, tmp_path: Path) -> None:
    ranges = Ranges({"0.sa.mat_qkv": torch.ones(TRANSFORMER.width)})
    with pytest.raises(EngineBuildError, match="no range was measured"):
        insert_products(exported, tmp_path, ranges, 0, FORMATS["int8"])


def test_chunks_find_the_ranges_of_their_own_blocks(tmp_path: Path) -> None:
    model = random_transformer()
    whole = {
        name: torch.full((layer.in_features,), 1.0 + float(name[0]))
        for name, layer in quantized_layers(model.blocks).items()
    }
    steps = []
    for first in range(TRANSFORMER.depth):
        folder = tmp_path / str(first)
        export_graph(InfinityBlocksGraph(model, first, first + 1), folder / "graph")
        insert_products(folder / "graph", folder / "out", Ranges(whole), first, FORMATS["float8"])
        constants = onnx.load(folder / "out" / MODEL_FILE, load_external_data=False).graph.initializer
        steps += [float(onnx.numpy_helper.to_array(c)) for c in constants if c.name == "blocks.0.sa.mat_qkv.input_step"]
    assert len(steps) == TRANSFORMER.depth
    assert steps[1] > 1.5 * steps[0]


@pytest.mark.parametrize("form", FORMATS.values())
def test_a_graph_in_bfloat16_has_the_constants_of_its_twin(tmp_path: Path, form: Format) -> None:
    """Weights are stored in 8 bits; steps and factors are exact in both precisions."""
    model, found = random_transformer(), []
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()  # so that both graphs hold the same weights
    ranges = Ranges({n: torch.rand(la.in_features) + 0.5 for n, la in quantized_layers(model.blocks).items()})
    for precision in ("float32", "bfloat16"):
        folder = tmp_path / precision
        export_graph(InfinityBlocksGraph(model, precision=precision), folder / "graph")
        insert_products(folder / "graph", folder / "out", ranges, 0, form)
        graph = onnx.load(folder / "out" / MODEL_FILE).graph
        held = {c.name: onnx.numpy_helper.to_array(c) for c in graph.initializer}
        found.append({n: v.astype(np.float64) for n, v in held.items() if "step" in n or "factor" in n})
        found[-1] |= {n: v.astype(np.float64) for n, v in held.items() if n.endswith("mat_qkv.weight")}
        sizes = (folder / "out" / WEIGHTS_FILE).stat().st_size, (folder / "graph" / WEIGHTS_FILE).stat().st_size
        assert sizes[0] < (0.4 if precision == "float32" else 0.7) * sizes[1]
    assert set(found[0]) == set(found[1])
    for name, value in found[0].items():
        assert np.array_equal(value, found[1][name]), name

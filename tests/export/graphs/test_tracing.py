"""Recording without decompositions gives the graphs that PyTorch's exporter gives by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from helpers.graph_inputs import random_inputs
from helpers.samples import random_transformer, random_vae, write_text_encoder
from helpers.var_samples import VAR_MODELS
from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine
from torch import nn
from torch.export import ExportedProgram

from ldp_export.checkpoints.t5 import load_text_encoder
from ldp_export.graphs import onnx as export
from ldp_export.graphs.graph import Graph
from ldp_export.graphs.infinity import InfinityBlocksGraph, InfinityDecoderGraph, InfinityPromptGraph
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.graphs.t5 import T5EncoderGraph
from ldp_export.graphs.var import VarBlocksGraph, VarDecoderGraph, VarPromptGraph
from ldp_export.models.var import VarTransformer
from ldp_export.models.var_vae import VarVae

SIZES = {
    Axis.ROWS: 2,
    Axis.TOKENS: 9,
    Axis.PAST: 5,
    Axis.TEXT: 6,
    Axis.IMAGES: 1,
    Axis.HEIGHT: 8,
    Axis.WIDTH: 8,
}
CLASSES = VAR_MODELS["one AdaLN for all blocks"]
GRAPHS: dict[str, Callable[[Path], Graph]] = {
    "blocks": lambda _: InfinityBlocksGraph(random_transformer()),
    "static cache": lambda _: InfinityBlocksGraph(random_transformer(), 0, 1).with_static_cache(64),
    "prompt": lambda _: InfinityPromptGraph(random_transformer()),
    "decoder": lambda _: InfinityDecoderGraph(random_vae()),
    "text encoder": lambda f: T5EncoderGraph(load_text_encoder(write_text_encoder(f / "t5", 32)).module),
    "class blocks": lambda _: VarBlocksGraph(VarTransformer(CLASSES.transformer).eval()),
    "class prompt": lambda _: VarPromptGraph(VarTransformer(CLASSES.transformer).eval()),
    "class decoder": lambda _: VarDecoderGraph(VarVae(CLASSES.vae).eval()),
}


def inputs_of(graph: Graph) -> dict[str, torch.Tensor]:
    inputs = random_inputs(graph.signature, SIZES)
    for spec in graph.signature.inputs:
        if spec.dtype == "int64":
            inputs[spec.name] = torch.ones(spec.at(SIZES), dtype=torch.int64)
    return inputs


def run(graph: Graph, file: Path) -> dict[str, torch.Tensor]:
    inputs, names = inputs_of(graph), graph.signature.output_names
    drawn = graph(*inputs.values())
    drawn = drawn if isinstance(drawn, tuple) else (drawn,)
    outputs = {name: torch.zeros(tensor.shape) for name, tensor in zip(names, drawn, strict=True)}
    OnnxRuntimeEngine(graph.signature.name, file, threads=1).run(inputs, outputs)
    return outputs


@pytest.mark.parametrize("name", GRAPHS)
@torch.no_grad()
def test_same_operators_and_same_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = GRAPHS[name](tmp_path)
    decomposed: list[str] = []
    decompose = ExportedProgram.run_decompositions

    def watch(program: ExportedProgram, *arguments: Any) -> ExportedProgram:
        decomposed.append(name)
        return decompose(program, *arguments)

    monkeypatch.setattr(ExportedProgram, "run_decompositions", watch)
    export.export_graph(graph, tmp_path / "recorded")
    assert not decomposed

    def none(graph: Graph) -> ExportedProgram:
        raise torch.onnx.OnnxExporterError("not recorded")

    monkeypatch.setattr(export, "record", none)
    export.export_graph(graph, tmp_path / "theirs")
    assert decomposed
    files = [tmp_path / which / export.MODEL_FILE for which in ("recorded", "theirs")]
    ours, theirs = (Counter(node.op_type for node in onnx.load(file).graph.node) for file in files)
    assert ours == theirs
    mine, expected = (run(graph, file) for file in files)
    assert all(torch.equal(mine[output], expected[output]) for output in expected)


class Cumulated(Graph):
    """A graph whose sum in place has no ONNX function, nor a name that has one."""

    def __init__(self) -> None:
        tensor = TensorSpec("x", (Axis.ROWS, 4))
        super().__init__(GraphSignature("sum", (tensor,), (TensorSpec("y", (Axis.ROWS, 4)),)))
        self.scale = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.scale
        head = y[:, :2]
        head += 1  # through a view: `y` changes with it
        return y


def test_what_changes_in_place_is_decomposed(tmp_path: Path) -> None:
    graph = Cumulated()
    export.export_graph(graph, tmp_path)
    x, y = torch.ones(3, 4), torch.zeros(3, 4)
    OnnxRuntimeEngine("sum", tmp_path / export.MODEL_FILE, threads=1).run({"x": x}, {"y": y})
    assert y.tolist() == [[3.0, 3.0, 2.0, 2.0]] * 3

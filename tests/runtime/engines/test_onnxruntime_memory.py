"""Memory of ONNX Runtime's activations: small engines keep it between calls, large ones give it back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import torch
from ldp_runtime.engines import onnxruntime as engines
from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine
from onnx import TensorProto, helper

ROWS, WIDTH = 4096, 8192
_MAP = 4 * ROWS * WIDTH


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A graph whose output has one number, and which computes two maps of 134 MB on the way."""
    row = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    ones = helper.make_tensor("ones", TensorProto.FLOAT, [1, WIDTH], np.ones(WIDTH, np.float32))
    nodes = [
        helper.make_node("MatMul", ["x", "ones"], ["wide"]),
        helper.make_node("Exp", ["wide"], ["map"]),
        helper.make_node("ReduceSum", ["map"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(nodes, "wide", [row], [out], [ones])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def kept_after_a_call(engine: OnnxRuntimeEngine) -> int:
    """Bytes that the process has more than before the first call; a small call comes first, which starts the arena."""
    process, y = psutil.Process(), torch.empty(())
    engine.run({"x": torch.zeros(1, 1)}, {"y": y})
    before = process.memory_info().rss
    engine.run({"x": torch.zeros(ROWS, 1)}, {"y": y})
    assert float(y) == pytest.approx(ROWS * WIDTH)
    return process.memory_info().rss - before


@pytest.mark.parametrize("large", [True, False])
def test_what_a_call_leaves(path: Path, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
    if large:
        monkeypatch.setattr(engines, "_LARGE", 0)
    kept = kept_after_a_call(OnnxRuntimeEngine("wide", path, threads=1))
    assert (kept < _MAP / 2) is large

"""Memory of ONNX Runtime's activations: small engines keep it between calls, large ones give it back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from ldp_runtime.engines import onnxruntime as engines
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


#: Prints the bytes that a process has more than before its first call. A small call, before it, starts the arena.
_MEASURE = """
import sys
import psutil, torch
from ldp_runtime.engines import onnxruntime as engines

path, rows, engines._LARGE = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
engine, y = engines.OnnxRuntimeEngine("wide", engines.Path(path), threads=1), torch.empty(())
engine.run({"x": torch.zeros(1, 1)}, {"y": y})
before = psutil.Process().memory_info().rss
engine.run({"x": torch.zeros(rows, 1)}, {"y": y})
print(psutil.Process().memory_info().rss - before, float(y))
"""


@pytest.mark.parametrize("large", [True, False])
def test_what_a_call_leaves(path: Path, large: bool) -> None:
    """A process of its own measures: what other tests' threads allocate meanwhile would count as the engine's."""
    threshold = 0 if large else engines._LARGE
    command = [sys.executable, "-c", _MEASURE, str(path), str(ROWS), str(threshold)]
    kept, y = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert y == pytest.approx(ROWS * WIDTH)
    assert (kept < _MAP / 2) is large

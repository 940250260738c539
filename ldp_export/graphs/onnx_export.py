"""From a graph module to an ONNX file whose weights stay in safetensors.

The module is exported with fake tensors, so its weights are neither copied nor traced; the ONNX initializers then
point into a safetensors file in the graph's folder. Runtimes refuse external data outside the model's own folder,
so that file lies beside the graph.
"""

from __future__ import annotations

import logging
import struct
import warnings
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import ExportError
from safetensors.torch import save_file
from torch import nn

from ldp_export.graphs.signature import Axis, GraphSignature

logger = logging.getLogger(__name__)

OPSET = 23
MODEL_FILE, WEIGHTS_FILE = "model.onnx", "weights.safetensors"

#: Sizes used while tracing: all different and none 0 or 1, lest torch.export takes a size for a constant.
_EXAMPLE = {Axis.ROWS: 2, Axis.TOKENS: 6, Axis.PAST: 10, Axis.TEXT: 7, Axis.IMAGES: 2, Axis.HEIGHT: 5, Axis.WIDTH: 9}
_LARGEST = 1 << 20
#: Tensors above this many elements are never folded into new, anonymous constants: weights keep their names.
_FOLD_LIMIT = 4096


def export_graph(module: nn.Module, folder: Path) -> None:
    """Writes `model.onnx` and `weights.safetensors` of a graph module (one with a `.signature`) into `folder`.

    Raises:
        ExportError: the module cannot be traced, or an input of the signature is not used by the graph.
    """
    signature: GraphSignature = module.signature  # pyright: ignore[reportAssignmentType]
    weights = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        program = _trace(module.eval(), signature)
    except Exception as error:  # torch.export raises many types
        raise ExportError(f"could not export the graph {signature.name!r}: {error}") from error
    unused = {v.name for v in program.model.graph.inputs if not v.uses()}
    if unused:
        raise ExportError(f"the graph {signature.name!r} does not use its inputs {sorted(unused)}")
    _point_to_weights(program.model, weights, folder)
    _write(program.model, folder / MODEL_FILE)


def _trace(module: nn.Module, signature: GraphSignature) -> Any:
    """The ONNX program of the module, traced on fake tensors with every axis dynamic."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    dims = {
        axis: torch.export.Dim(str(axis), min=0 if axis is Axis.PAST else 1, max=_LARGEST) for axis in signature.axes
    }
    examples = tuple(torch.zeros(spec.at(_EXAMPLE), dtype=spec.torch_dtype) for spec in signature.inputs)
    shapes = tuple({i: dims[d] for i, d in enumerate(spec.shape) if isinstance(d, Axis)} for spec in signature.inputs)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    takes_many = len(signature.inputs) > 1
    with mode, warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript", "torch.export"):
        warnings.simplefilter("ignore")
        fake = tuple(mode.from_tensor(t, static_shapes=True) for t in examples)
        return torch.onnx.export(
            module,
            fake,
            dynamo=True,
            opset_version=OPSET,
            input_names=signature.input_names,
            output_names=signature.output_names,
            dynamic_shapes=(shapes,) if takes_many else shapes,
            optimize=False,
            verbose=False,
        )


def _point_to_weights(model: Any, weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Stores the weights that the graph uses and makes its initializers refer to the file."""
    import onnx_ir as ir

    initializers = model.graph.initializers
    used = {name: weights[name].contiguous() for name in initializers if name in weights}
    path = folder / WEIGHTS_FILE
    save_file({name: tensor.clone() for name, tensor in used.items()}, path)
    offsets = _tensor_offsets(path)
    for name, tensor in used.items():
        start, length = offsets[name]
        initializers[name].const_value = ir.ExternalTensor(
            WEIGHTS_FILE,
            start,
            length,
            ir.DataType[str(tensor.dtype).removeprefix("torch.").upper().replace("FLOAT32", "FLOAT")],
            name=name,
            shape=ir.Shape(tensor.shape),
            base_dir=folder,
        )


def _tensor_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Byte offset in the file and length of every tensor of a safetensors file."""
    import json

    with path.open("rb") as file:
        (header_length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_length))
    base = 8 + header_length
    return {
        name: (base + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _write(model: Any, path: Path) -> None:
    import onnx_ir as ir
    from onnxscript import optimizer

    def small(node: Any) -> bool:
        sizes = (v.const_value.size for v in node.inputs if v is not None and v.const_value is not None)
        return all(size <= _FOLD_LIMIT for size in sizes)

    with _quiet("onnxscript", "onnx_ir"):
        optimizer.optimize_ir(model, should_fold=small)
    _strip_metadata(model)
    ir.save(model, path)


def _strip_metadata(model: Any) -> None:
    """Takes out the tracer's notes (stack traces, file paths): they differ from machine to machine."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()


class _quiet:  # noqa: N801
    """Raises the level of chatty third-party loggers for the duration."""

    def __init__(self, *names: str) -> None:
        self.loggers = [logging.getLogger(name) for name in names]

    def __enter__(self) -> None:
        self.levels = [each.level for each in self.loggers]
        for each in self.loggers:
            each.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        for each, level in zip(self.loggers, self.levels, strict=True):
            each.setLevel(level)

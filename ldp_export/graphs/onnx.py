"""Export of a graph module to an ONNX file whose weights are in safetensors.

The module is traced on fake tensors, so its weights are neither needed nor copied: it may be on the meta device. The
ONNX initializers then point into a safetensors file, whose writing is streamed. Runtimes refuse external data outside
the model's own folder, so the safetensors file is beside the graph. Precision is part of the graph: weights are
stored in their element types. A reduced-precision graph must differ from its float32 twin in casts only.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import ExportError
from torch import nn

from ldp_export.checkpoints.files.writer import Place, TensorSource, write_tensors
from ldp_export.graphs.graph import Graph
from ldp_export.graphs.signature import MODEL_FILE
from ldp_export.graphs.tracing import record
from ldp_export.logs import errors_only

logger = logging.getLogger(__name__)


#: Version of the exported files; raised when they change, so that graphs of earlier versions are not reused.
FORMAT = 3


WEIGHTS_FILE = "weights.safetensors"


#: Element types that ONNX calls otherwise.
_ONNX_NAMES = {torch.float32: "FLOAT", torch.float8_e4m3fn: "FLOAT8E4M3FN"}


#: Most elements of a tensor that is folded into a new, anonymous constant: weights are larger and keep their names.
_FOLD_LIMIT = 4096


def export_graph(
    graph: Graph,
    folder: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
    say: Callable[[str], None] = lambda detail: None,
    twin: Graph | None = None,
) -> None:
    """Writes `model.onnx` and `weights.safetensors` of a graph into `folder`.

    Args:
        weights: values of the graph's weights in any element type, such as those of a memory-mapped checkpoint; None
            takes the graph's own.
        say: called with the name of each step.
        twin: float32 twin to compare with, node by node; see `check_twin`.

    Raises:
        ExportError: the module cannot be traced, does not use an input of its signature, or differs from its twin.
        CheckpointError: a weight is NaN or infinite, or becomes so in its element type.
    """
    weights = graph.state_dict() if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    say("tracing")
    model = onnx_model(graph)
    unused = {v.name for v in model.graph.inputs if not v.uses()}
    if unused:
        raise ExportError(
            f"the graph {graph.signature.name!r} does not use its inputs {sorted(unused)}",
            hint="use versions of torch and onnxscript that ldp-export asks for; with those, please report it",
        )
    if twin is not None:
        say("comparing with the float32 graph")
        check_twin(graph, model, twin)
    transposed = _take_out_transposes(model)
    store_weights(model, graph, weights, transposed, folder, say)
    say("writing the graph")
    _write(model, folder / MODEL_FILE)


def check_twin(graph: Graph, model: Any, twin: Graph) -> None:
    """Raises ExportError unless a graph is, node by node and apart from casts, the same as its float32 twin.

    Args:
        model: the graph as it was traced.
    """
    mismatches = differences(model, onnx_model(twin))
    if mismatches:
        raise ExportError(
            f"the graph {graph.signature.name!r} in {graph.precision} is not its {twin.precision} twin but for casts: "
            + "; ".join(mismatches[:5]),
            hint="use versions of torch and onnxscript that ldp-export asks for; with those, please report it",
        )


def onnx_model(graph: Graph) -> Any:
    """ONNX model of a graph; its weights have no values.

    Raises:
        ExportError: the module cannot be traced.
    """
    try:
        return _trace(graph.eval()).model
    except Exception as error:  # torch.export raises many types
        raise ExportError(
            f"could not export the graph {graph.signature.name!r}: {error}",
            hint="check with ldp-export doctor that the versions of torch and onnxscript are supported; -v shows where",
        ) from error


def _trace(graph: Graph) -> Any:
    """ONNX program of the module, traced on fake tensors with every axis dynamic."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, _fake_weights(graph), warnings.catch_warnings(), errors_only("torch.onnx", "onnxscript", "torch.export"):
        warnings.simplefilter("ignore")
        try:
            return _translate(graph, record(graph))
        except Exception as error:  # torch.export raises many types; the exporter has more ways to record a module
            logger.debug("the graph %r needs decompositions: %s", graph.signature.name, error)
        return _translate(graph, graph)


def _translate(graph: Graph, program: Any) -> Any:
    """ONNX program of a recorded graph, or of one that the exporter is to record and decompose."""
    signature = graph.signature
    return torch.onnx.export(
        program,
        () if program is not graph else signature.examples(),
        dynamo=True,
        opset_version=graph.opset,
        input_names=signature.input_names,
        output_names=signature.output_names,
        dynamic_shapes=signature.dynamic_shapes(),
        optimize=False,
        verbose=False,
    )


@contextmanager
def _fake_weights(graph: Graph) -> Generator[None]:
    """Replaces every parameter, within its scope, by a fake one in the element type in which it will be stored."""
    types = graph.weight_types()
    fakes: dict[int, nn.Parameter] = {}
    places = [
        (module, name, parameter, f"{prefix}.{name}" if prefix else name)
        for prefix, module in graph.named_modules(remove_duplicate=False)
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
    ]
    for module, name, parameter, full in places:
        fake = torch.empty(parameter.shape, dtype=types[full])
        setattr(module, name, fakes.setdefault(id(parameter), nn.Parameter(fake, requires_grad=False)))
    try:
        yield
    finally:
        for module, name, parameter, _ in places:
            setattr(module, name, parameter)


def _take_out_transposes(model: Any) -> set[str]:
    """Removes the transposes of matrices that the graph only uses transposed, and returns the matrices' names.

    These matrices are then stored transposed. Otherwise engine builders and runtimes would transpose them at every
    load; TensorRT-RTX builds twice as fast without.
    """
    import onnx_ir as ir

    names = set()
    for name, value in model.graph.initializers.items():
        nodes = [use.node for use in value.uses()]
        if not nodes or value.shape is None or len(value.shape) != 2 or any(n.op_type != "Transpose" for n in nodes):
            continue
        for node in nodes:
            ir.convenience.replace_all_uses_with(node.outputs[0], value)
            model.graph.remove(node, safe=True)
        value.shape = ir.Shape(tuple(reversed(value.shape)))
        names.add(name)
    return names


def store_weights(
    model: Any,
    graph: Graph,
    weights: Mapping[str, torch.Tensor],
    transposed: set[str],
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Streams the weights that the graph uses into their file, and makes the initializers refer to it."""
    initializers, types = model.graph.initializers, graph.weight_types()
    used = {name: weights[name] for name in initializers if name in weights}
    sources = [
        TensorSource.of(name, tensor.t() if name in transposed else tensor, types.get(name))
        for name, tensor in used.items()
    ]
    places = write_tensors(sources, folder / WEIGHTS_FILE, lambda name: say(f"weights: {name}"))
    for source in sources:
        initializers[source.name].const_value = external_tensor(source, places[source.name], folder)


def external_tensor(source: TensorSource, place: Place, folder: Path) -> Any:
    """Value of an initializer that lies in the weights' file of a graph's folder."""
    import onnx_ir as ir

    return ir.ExternalTensor(
        WEIGHTS_FILE,
        place.offset,
        place.length,
        onnx_type(source.dtype),
        name=source.name,
        shape=ir.Shape(source.shape),
        base_dir=folder,
    )


def onnx_type(dtype: torch.dtype) -> Any:
    """ONNX's element type for one of PyTorch's."""
    import onnx_ir as ir

    return ir.DataType[_ONNX_NAMES.get(dtype, str(dtype).removeprefix("torch.").upper())]


def _write(model: Any, path: Path) -> None:
    import onnx_ir as ir
    from onnxscript import optimizer

    def small(node: Any) -> bool:
        sizes = (v.const_value.size for v in node.inputs if v is not None and v.const_value is not None)
        return all(size <= _FOLD_LIMIT for size in sizes)

    with errors_only("onnxscript", "onnx_ir"):
        optimizer.optimize_ir(model, should_fold=small)
    _strip_metadata(model)
    ir.save(model, path)


def _strip_metadata(model: Any) -> None:
    """Removes the tracer's metadata (stack traces, file paths), which differ from machine to machine."""
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    model.metadata_props.clear()


#: Origin of a node's input: name of a graph input or initializer, or numbers of an earlier node and of its output.
Source = str | tuple[int, int] | None


#: A node: its operator, the sources of its inputs, and its attributes except the values of constants.
Described = tuple[str, tuple[Source, ...], tuple[str, ...]]


def describe(model: Any) -> list[Described]:
    """Nodes of an ONNX model in order, as if it had no casts."""
    sources: dict[int, Source] = {id(v): v.name for v in (*model.graph.inputs, *model.graph.initializers.values())}
    described: list[Described] = []
    for node in model.graph:
        inputs = tuple(None if value is None else sources[id(value)] for value in node.inputs)
        if node.op_type == "Cast":
            sources[id(node.outputs[0])] = inputs[0]
            continue
        for i, output in enumerate(node.outputs):
            sources[id(output)] = (len(described), i)
        described.append((node.op_type, inputs, _attributes(node)))
    described.append(("outputs", tuple(sources[id(value)] for value in model.graph.outputs), ()))
    return described


def _attributes(node: Any) -> tuple[str, ...]:
    """Attributes of a node; none for constants, whose values are in the element type of their own graph."""
    if node.op_type == "Constant":
        return ()
    return tuple(f"{name}={attribute.value}" for name, attribute in sorted(node.attributes.items()))


def differences(model: Any, twin: Any) -> list[str]:
    """Descriptions of the nodes in which two models differ, apart from casts."""
    pairs = zip_longest(describe(model), describe(twin))
    return [f"node {i} is {_say(a)}, its twin {_say(b)}" for i, (a, b) in enumerate(pairs) if a != b]


def _say(node: Described | None) -> str:
    return "absent" if node is None else f"{node[0]} of {list(node[1])} {' '.join(node[2])}".rstrip()

"""Tracing of a graph module to the operators that PyTorch's ONNX exporter translates, in one pass.

The exporter traces a module twice: `torch.export` records it, and decompositions then trace the record again, to
replace what has no ONNX function. That is more than half of an export's time. The graphs of this toolkit hold few such
operators, so they are replaced while the module is recorded. Where one is left, the exporter takes its own, longer way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ldp_export.graphs.graph import Graph

aten = torch.ops.aten

#: Operators that leave values as they are or convert their element type, and have no ONNX function.
_CONVERSIONS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.contiguous.default)


#: Checks of the tracer, which no graph holds.
_ASSERTIONS = (aten._assert_tensor_metadata.default, aten._assert_scalar.default)


#: Operators under a name that has no ONNX function, and the name that has one.
_SYNONYMS = {
    aten.__and__.Tensor: aten.bitwise_and.Tensor,
    aten.min.other: aten.minimum.default,
}


def record(graph: Graph) -> ExportedProgram:
    """Program of a module on fake tensors, for the ONNX exporter.

    An operator without an ONNX function may be left in it. Then the exporter raises an error, and the graph needs
    decompositions.

    Raises:
        OnnxExporterError: the program changes a tensor in place.
    """
    from torch.fx.experimental import _config

    dynamic_sizes: Any = _config
    signature = graph.signature
    # Sizes 0 and 1 are like any other, as where the exporter itself records a module.
    with dynamic_sizes.patch(backed_size_oblivious=True), _SimplerCalls():
        program = torch.export.export(
            graph,
            signature.examples(),
            dynamic_shapes=signature.dynamic_shapes(),
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
    for node in list(program.graph.nodes):
        _simplify(program.graph, node)
    program.graph.eliminate_dead_code()
    program.graph_module.recompile()
    if changing := [str(node.target) for node in program.graph.nodes if _is_mutable(node.target)]:
        raise torch.onnx.OnnxExporterError(f"changes a tensor in place: {changing}")
    program.__class__ = _Decomposed
    return program


class _Decomposed(ExportedProgram):
    """Program whose operators need no decomposition."""

    def run_decompositions(self, *args: Any, **kwargs: Any) -> ExportedProgram:
        return self


class _SimplerCalls(TorchFunctionMode):
    """Replaces, while a module is recorded, calls whose record would need a decomposition."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if simpler := _SIMPLER.get(func):
            return simpler(*args, **kwargs)
        return func(*args, **kwargs)


def _unflatten(x: torch.Tensor, dim: int, sizes: Sequence[int]) -> torch.Tensor:
    dim %= x.dim()
    known = math.prod(size for size in sizes if size != -1)
    whole = [x.shape[dim] // known if size == -1 else size for size in sizes]
    return x.view(*x.shape[:dim], *whole, *x.shape[dim + 1 :])


def _flatten(x: torch.Tensor, start_dim: int = 0, end_dim: int = -1) -> torch.Tensor:
    first, last = start_dim % x.dim(), end_dim % x.dim()
    return x.reshape(*x.shape[:first], math.prod(x.shape[first : last + 1]), *x.shape[last + 1 :])


def _view_as(x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return x.view(other.shape)


def _normalize(x: torch.Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: None = None) -> torch.Tensor:
    return x / x.norm(p, dim, keepdim=True).clamp_min(eps).expand(x.shape)


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return F.dropout(x, p) if training else x


_SIMPLER: dict[Callable[..., Any], Callable[..., torch.Tensor]] = {
    torch.Tensor.unflatten: _unflatten,
    torch.Tensor.flatten: _flatten,
    torch.Tensor.view_as: _view_as,
    F.normalize: _normalize,
    F.dropout: _dropout,
}


def _simplify(graph: torch.fx.Graph, node: Any) -> None:
    """Replaces or removes one node of a recorded program, if it has no ONNX function."""
    if node.target in _ASSERTIONS:
        graph.erase_node(node)
    elif node.target in _SYNONYMS:
        node.target = _SYNONYMS[node.target]
    elif node.target is aten.add_.Tensor and _is_last_use(node):
        node.target = aten.add.Tensor
    elif node.target in _CONVERSIONS:
        source = node.args[0]
        dtype = node.meta["val"].dtype
        if dtype != source.meta["val"].dtype:
            with graph.inserting_before(node):
                converted = graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})
            converted.meta = dict(node.meta)
            source = converted
        node.replace_all_uses_with(source)
        graph.erase_node(node)


def _is_last_use(node: Any) -> bool:
    """True if an operator changes, in place, a tensor of its own that nothing else reads."""
    source = node.args[0]
    schema = _schema(source.target)
    fresh = schema is not None and schema.returns[0].alias_info is None
    return fresh and list(source.users) == [node]


def _is_mutable(target: Any) -> bool:
    schema = _schema(target)
    return schema is not None and schema.is_mutable


def _schema(target: Any) -> Any:
    """Schema of an operator, or None of what is none: an input, an output, a Python function."""
    return getattr(target, "_schema", None)

"""Insertion of 8-bit numbers into an exported `blocks` graph, as the pairs of operators that TensorRT takes.

    x -> Mul(1 / factor) -> QuantizeLinear -> DequantizeLinear -> MatMul
                                   8-bit W -> DequantizeLinear ---^

A library that multiplies 8-bit numbers fuses the pairs into the product. One that does not computes the same numbers in
floats. Weights are read, rounded and written one by one. Where weights alone are rounded, the lower line is inserted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import EngineBuildError
from safetensors import safe_open

from ldp_export.checkpoints.files.writer import ELEMENT_TYPES, TensorSource, write_tensors
from ldp_export.graphs.onnx import WEIGHTS_FILE, external_tensor, onnx_type
from ldp_export.graphs.signature import MODEL_FILE
from ldp_export.quantization.formats import Format, QuantizedProduct, quantized_product, rounded_weight
from ldp_export.quantization.ranges import Ranges

#: Weights of the blocks in a graph, whose blocks are numbered from 0. The embedding and the head stay as they are: the
#: one reads few channels, the other decides the tokens.
_WEIGHT = re.compile(r"blocks\.(\d+)\.(.+)\.weight")

_ZERO = torch.tensor(0.0)
_TYPES = {name: dtype for dtype, name in ELEMENT_TYPES.items()}


def insert_products(
    source: Path,
    target: Path,
    ranges: Ranges | None,
    first: int,
    form: Format,
    say: Callable[[str], None] = lambda detail: None,
) -> int:
    """Writes a copy of the graph in folder `source` into `target`, whose products with blocks' weights are in 8 bits.

    Args:
        ranges: ranges of the inputs, by the layer's name in the whole model; None: only the weights are rounded.
        first: index of the graph's first block in the whole model.

    Returns:
        Number of products that are now quantized.

    Raises:
        EngineBuildError: there is no such product, or one whose range was not measured.
    """
    import onnx_ir as ir

    model = ir.load(source / MODEL_FILE)
    graph = model.graph
    products = {node: match for node in graph if (match := _weight_of(node)) is not None}
    if not products:
        raise EngineBuildError(
            f"no matrix product of the graph in {source} has a weight of a block", hint="build without --quantize"
        )
    target.mkdir(parents=True, exist_ok=True)
    with safe_open(source / WEIGHTS_FILE, "pt") as stored:
        held = set(stored.keys())
        sources = {name: _as_stored(stored, name) for name in graph.initializers if name in held}
        for node, match in products.items():
            layer, weight = f"{first + int(match[1])}.{match[2]}", match[0]
            say(f"measuring weights: {layer}")
            product = _product(stored.get_tensor(weight).t(), layer, ranges, form)
            _insert(graph, node, product, rounds_inputs=ranges is not None)
            sources[weight] = _as_rounded(stored, weight, product)
        places = write_tensors(sources.values(), target / WEIGHTS_FILE, lambda name: say(f"weights: {name}"))
    for name, place in places.items():
        graph.initializers[name].const_value = external_tensor(sources[name], place, target)
    ir.save(model, target / MODEL_FILE)
    return len(products)


def _product(weight: torch.Tensor, layer: str, ranges: Ranges | None, form: Format) -> QuantizedProduct:
    if ranges is None:
        return rounded_weight(weight, form)
    if layer not in ranges.magnitudes:
        raise EngineBuildError(f"no range was measured of the inputs of {layer}", hint="build again with --force")
    return quantized_product(weight, ranges.magnitudes[layer], form)


def _weight_of(node: Any) -> re.Match[str] | None:
    """Match of the name of a node's weight, if it is a product with a weight of a block."""
    if node.op_type != "MatMul" or not node.inputs[1].is_initializer():
        return None
    return _WEIGHT.fullmatch(node.inputs[1].name)


def _as_stored(stored: Any, name: str) -> TensorSource:
    piece = stored.get_slice(name)
    dtype = _TYPES[piece.get_dtype()]
    return TensorSource(name, tuple(piece.get_shape()), dtype, lambda: stored.get_tensor(name))


def _as_rounded(stored: Any, name: str, product: QuantizedProduct) -> TensorSource:
    shape = tuple(stored.get_slice(name).get_shape())
    return TensorSource(name, shape, product.form.dtype, lambda: product.weight(stored.get_tensor(name).t()).t())


def _insert(graph: Any, node: Any, product: QuantizedProduct, rounds_inputs: bool) -> None:
    """Puts the operators before the inputs of a product node."""
    import onnx_ir as ir

    x, weight = node.inputs
    name, kind, eight = weight.name.removesuffix(".weight"), weight.dtype, onnx_type(product.form.dtype)
    added: list[Any] = []

    def constant(what: str, value: torch.Tensor, dtype: Any) -> Any:
        """Initializer with float values, exact in the given type."""
        array = value.float().numpy().astype(dtype.numpy())
        held = ir.Value(name=f"{name}.{what}", const_value=ir.tensor(array, dtype, name=f"{name}.{what}"))
        graph.register_initializer(held)
        return held

    def operator(kind: str, *inputs: Any, **attributes: int) -> Any:
        added.append(ir.node(kind, inputs, attributes, name=f"{name}.{kind}_{len(added)}"))
        return added[-1].outputs[0]

    if bool((product.factor != 1).any()):
        x = operator("Mul", x, constant("factor", 1 / product.factor, kind))
    if rounds_inputs:
        step, zero = constant("input_step", torch.tensor(product.input_step), kind), constant("zero", _ZERO, eight)
        x = operator("DequantizeLinear", operator("QuantizeLinear", x, step, zero), step, zero)
    weight.type = ir.TensorType(eight)
    if product.form.by_channel:  # outputs are the columns of the stored matrix
        step = constant("weight_step", product.weight_step, kind)
        w = operator("DequantizeLinear", weight, step, constant("zeros", 0 * product.weight_step, eight), axis=1)
    else:
        step, zero = constant("weight_step", product.weight_step[0], kind), constant("weight_zero", _ZERO, eight)
        w = operator("DequantizeLinear", weight, step, zero)
    graph.insert_before(node, added)
    node.replace_input_with(0, x)
    node.replace_input_with(1, w)

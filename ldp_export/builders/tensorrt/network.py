"""Parser from an ONNX file to a TensorRT network that is known to be the graph that was exported.

Parsing alone proves little. The parser may drop an input with no more than a warning, and an attention that it does not
recognize runs as plain matrix products. So warnings about unused inputs are errors, and the operators that matter must
all arrive as the layers that stand for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldp_runtime.engines.tensorrt.library import Library, Message
from ldp_runtime.errors import EngineBuildError

from ldp_export.graphs.signature import LENGTHS, MODEL_FILE, Axis, GraphSignature

#: ONNX operators that must not be taken apart, and the layer that each becomes.
LAYER_OF = {
    "Attention": "ATTENTION_INPUT",
    "RotaryEmbedding": "ROTARY_EMBEDDING",
    "TensorScatter": "KV_CACHE_UPDATE",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
}


#: Index of the values among an attention's inputs: queries, keys, values.
_VALUES = 2


_UNUSED = re.compile(r"unused input:?\s*(\S+)", re.IGNORECASE)


@dataclass(frozen=True)
class Network:
    """Parsed graph; `builder` and `parser` must outlive `network`.

    Attributes:
        layers: number of layers of each type.
        wired: inputs that the parser ignored, and that `wire_lengths` put to use afterwards.
    """

    builder: Any
    network: Any
    parser: Any
    layers: Counter[str]
    wired: frozenset[str]


def parse_network(library: Library, signature: GraphSignature, folder: Path, heard: list[Message]) -> Network:
    """Parses `folder/model.onnx`; the library maps the weights into memory instead of reading them.

    Args:
        heard: list that receives the library's messages (see `Library.listening`).

    Raises:
        EngineBuildError: the parser refuses the graph, drops an input, or takes an operator apart.
    """
    path = folder / MODEL_FILE
    builder, network = library.new_network()
    parser = library.module.OnnxParser(network, library.logger())
    if not parser.parse_from_file(str(path)):
        problems = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineBuildError(
            f"{library.title} cannot read the graph {signature.name!r}: {problems}",
            hint="use a version that ldp-export doctor lists, or build with --backend onnxruntime",
        )
    wired = wire_lengths(library, network, signature)
    refuse_unused(library, signature.name, heard, wired)
    layers = count_layers(network)
    check_layers(signature, count_operators(path), layers)
    return Network(builder, network, parser, layers, wired)


def count_layers(network: Any) -> Counter[str]:
    """Number of layers of each type in a network."""
    return Counter(network.get_layer(i).type.name for i in range(network.num_layers))


def count_operators(path: Path) -> Counter[str]:
    """Number of nodes of each type in an ONNX file; the weights are not read."""
    import onnx

    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def allow_plain_attention(library: Library, network: Any, signature: GraphSignature) -> None:
    """Lets the library take an attention apart where that is harmless; elsewhere it stays an error.

    It is harmless in float32, in which no fused kernel computes, and in graphs that run once per prompt.
    """
    trt = library.module
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings give the base class
            once = Axis.TOKENS not in signature.axes
            layer.attention.decomposable = once or layer.get_input(0).dtype == trt.float32


def wire_lengths(library: Library, network: Any, signature: GraphSignature) -> frozenset[str]:
    """Gives every self-attention over a static KV cache the number of cached positions to attend to.

    The parser reads Attention's `nonpad_kv_seqlen` and then drops it: the attention would go over the whole cache.

    Returns:
        Inputs of the graph that are used from now on, although the parser reported them as unused.

    Raises:
        EngineBuildError: a cache is read by no attention that accepts the lengths.
    """
    caches = {spec.name for spec in signature.outputs if spec.name.startswith("present_v_")}
    if not caches:
        return frozenset()
    trt = library.module
    lengths_input = next(t for t in map(network.get_input, range(network.num_inputs)) if t.name == LENGTHS)
    lengths = network.add_cast(lengths_input, trt.int32).get_output(0)
    wired = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type != trt.LayerType.ATTENTION_INPUT or layer.get_input(_VALUES).name not in caches:
            continue
        layer.__class__ = trt.IAttentionInputLayer  # the bindings give the base class
        layer.attention.key_value_lengths = lengths
        if layer.attention.key_value_lengths is not None:
            wired.add(layer.get_input(_VALUES).name)
    if wired != caches:
        raise EngineBuildError(
            f"the graph {signature.name!r} has the caches {sorted(caches)}, but {library.title} attends to a part of "
            f"{sorted(wired)} only: over the others it would read what was never written",
            hint="build with --kv-cache dynamic",
        )
    return frozenset({LENGTHS})


def refuse_unused(library: Library, graph: str, heard: list[Message], wired: frozenset[str]) -> None:
    """Raises EngineBuildError if the library reported an unused input of the graph that is not in `wired`."""
    dropped = sorted({match[1] for message in heard if (match := _UNUSED.search(message.text))} - wired)
    if dropped:
        raise EngineBuildError(
            f"{library.title} ignores the inputs {dropped} of the graph {graph!r}: the engine would compute "
            "something else",
            hint="install the version that ldp-export asks for, or build with --backend onnxruntime",
        )


def check_layers(signature: GraphSignature, operators: Mapping[str, int], layers: Mapping[str, int]) -> None:
    """Raises EngineBuildError if an operator or an attention of the graph did not become its layer."""
    for operator, layer in LAYER_OF.items():
        if operators.get(operator, 0) != layers.get(layer, 0):
            raise EngineBuildError(
                f"the graph {signature.name!r} has {operators.get(operator, 0)} {operator} operators, but its network "
                f"{layers.get(layer, 0)} {layer} layers: some were taken apart",
                hint="install the version that ldp-export asks for, or build with --kv-cache dynamic",
            )
    # Each block has self-attention and, if the graph reads a text, cross-attention to it.
    expected = (2 if Axis.TEXT in signature.axes else 1) * blocks_of(signature)
    if layers.get("ATTENTION_INPUT", 0) < expected:
        raise EngineBuildError(
            f"the graph {signature.name!r} has {blocks_of(signature)} blocks, so {expected} attentions, but its "
            f"network has {layers.get('ATTENTION_INPUT', 0)}",
            hint="install the version that ldp-export asks for, or build with --kv-cache dynamic",
        )


def blocks_of(signature: GraphSignature) -> int:
    """Number of transformer blocks of a graph that runs once per scale; 0 for other graphs."""
    if Axis.TOKENS not in signature.axes:
        return 0
    return sum(spec.name.startswith(("new_k_", "present_k_")) for spec in signature.outputs)

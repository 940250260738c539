"""From an ONNX file to a TensorRT network that is known to be the graph that was exported.

Parsing alone proves little: the parser may drop an input with no more than a warning, and an attention that is not
taken for one runs as plain matrix products. So warnings about unused inputs are errors, and the operators that matter
must all arrive as the layers that stand for them.
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

from ldp_export.graphs.key_values import LENGTHS
from ldp_export.graphs.onnx import MODEL_FILE
from ldp_export.graphs.signature import Axis, GraphSignature

#: ONNX operators that must not be taken apart, and the layer that each becomes.
LAYER_OF = {
    "Attention": "ATTENTION_INPUT",
    "RotaryEmbedding": "ROTARY_EMBEDDING",
    "TensorScatter": "KV_CACHE_UPDATE",
}


#: Index of the values among an attention's inputs: queries, keys, values.
_VALUES = 2


_UNUSED = re.compile(r"unused input:?\s*(\S+)", re.IGNORECASE)


@dataclass(frozen=True)
class Network:
    """A parsed graph; `builder` and `parser` must outlive `network`.

    Attributes:
        layers: how many of each type. wired: inputs that the parser ignored, and that are in use all the same.
    """

    builder: Any
    network: Any
    parser: Any
    layers: Counter[str]
    wired: frozenset[str]


def parse_network(library: Library, signature: GraphSignature, folder: Path, heard: list[Message]) -> Network:
    """Parses `folder/model.onnx`; the library maps its weights into memory rather than reading them.

    Args:
        heard: where the library's messages arrive (see `Library.listening`).

    Raises:
        EngineBuildError: the parser refuses the graph, drops an input, or takes an operator apart.
    """
    path = folder / MODEL_FILE
    builder, network = library.new_network()
    parser = library.module.OnnxParser(network, library.logger())
    if not parser.parse_from_file(str(path)):
        problems = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise EngineBuildError(f"{library.title} cannot read the graph {signature.name!r}: {problems}")
    wired = wire_lengths(library, network, signature)
    refuse_unused(library, signature.name, heard, wired)
    layers = count_layers(network)
    check_layers(signature, count_operators(path), layers)
    return Network(builder, network, parser, layers, wired)


def count_layers(network: Any) -> Counter[str]:
    """How many layers of each type a network has."""
    return Counter(network.get_layer(i).type.name for i in range(network.num_layers))


def count_operators(path: Path) -> Counter[str]:
    """How many nodes of each type an ONNX file has; the weights are not read."""
    import onnx

    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def allow_plain_attention(library: Library, network: Any, signature: GraphSignature) -> None:
    """Lets the library take an attention apart where that is harmless, so that it stays an error where it is not.

    That is, in float32, which no fused kernel computes in; and in graphs that run once a prompt.
    """
    trt = library.module
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # the bindings give the base class
            once = Axis.TOKENS not in signature.axes
            layer.attention.decomposable = once or layer.get_input(0).dtype == trt.float32


def wire_lengths(library: Library, network: Any, signature: GraphSignature) -> frozenset[str]:
    """Tells every self-attention over an in-place cache how much of it there is to attend to.

    The parser reads Attention's `nonpad_kv_seqlen` and forgets it: the attention would go over the whole cache.

    Returns:
        The graph's inputs that are in use by this, whatever the parser said of them.

    Raises:
        EngineBuildError: not one attention for each block reads a cache.
    """
    caches = {spec.name for spec in signature.outputs if spec.name.startswith("present_v_")}
    if not caches:
        return frozenset()
    trt = library.module
    given = next(t for t in map(network.get_input, range(network.num_inputs)) if t.name == LENGTHS)
    lengths = network.add_cast(given, trt.int32).get_output(0)
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
            f"{sorted(wired)} only: over the others it would read what was never written"
        )
    return frozenset({LENGTHS})


def refuse_unused(library: Library, graph: str, heard: list[Message], wired: frozenset[str]) -> None:
    """Raises EngineBuildError when the library said that it ignores one of the graph's inputs that is not `wired`."""
    dropped = sorted({found[1] for message in heard if (found := _UNUSED.search(message.text))} - wired)
    if dropped:
        raise EngineBuildError(
            f"{library.title} ignores the inputs {dropped} of the graph {graph!r}: the engine would compute "
            "something else"
        )


def check_layers(signature: GraphSignature, operators: Mapping[str, int], layers: Mapping[str, int]) -> None:
    for operator, layer in LAYER_OF.items():
        if operators.get(operator, 0) != layers.get(layer, 0):
            raise EngineBuildError(
                f"the graph {signature.name!r} has {operators.get(operator, 0)} {operator} operators, but its network "
                f"{layers.get(layer, 0)} {layer} layers: some were taken apart"
            )
    # Self-attention and, where there is a text, cross-attention to it.
    expected = (2 if Axis.TEXT in signature.axes else 1) * blocks_of(signature)
    if layers.get("ATTENTION_INPUT", 0) < expected:
        raise EngineBuildError(
            f"the graph {signature.name!r} has {blocks_of(signature)} blocks, so {expected} attentions, but its "
            f"network has {layers.get('ATTENTION_INPUT', 0)}"
        )


def blocks_of(signature: GraphSignature) -> int:
    """Transformer blocks of a graph that runs once per scale."""
    if Axis.TOKENS not in signature.axes:
        return 0
    return sum(spec.name.startswith(("new_k_", "present_k_")) for spec in signature.outputs)

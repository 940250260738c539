"""Is one ONNX graph another but for casts? Node by node and edge by edge."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

#: What a node takes: an input or initializer by its name, or an output of an earlier node by its number.
Source = str | tuple[int, int] | None
#: A node: its operator, what it takes, and its attributes but for values of constants.
Described = tuple[str, tuple[Source, ...], tuple[str, ...]]


def describe(model: Any) -> list[Described]:
    """The nodes of an ONNX model in order, as if it had no casts."""
    sources: dict[int, Source] = {id(v): v.name for v in (*model.graph.inputs, *model.graph.initializers.values())}
    described: list[Described] = []
    for node in model.graph:
        taken = tuple(None if value is None else sources[id(value)] for value in node.inputs)
        if node.op_type == "Cast":
            sources[id(node.outputs[0])] = taken[0]
            continue
        for i, output in enumerate(node.outputs):
            sources[id(output)] = (len(described), i)
        described.append((node.op_type, taken, _attributes(node)))
    described.append(("outputs", tuple(sources[id(value)] for value in model.graph.outputs), ()))
    return described


def _attributes(node: Any) -> tuple[str, ...]:
    """Constants hold values in the graph's element type, which the twin holds in its own."""
    if node.op_type == "Constant":
        return ()
    return tuple(f"{name}={attribute.value}" for name, attribute in sorted(node.attributes.items()))


def differences(model: Any, twin: Any) -> list[str]:
    """In words, where the two differ by more than casts."""
    pairs = zip_longest(describe(model), describe(twin))
    return [f"node {i} is {_say(a)}, its twin {_say(b)}" for i, (a, b) in enumerate(pairs) if a != b]


def _say(node: Described | None) -> str:
    return "absent" if node is None else f"{node[0]} of {list(node[1])} {' '.join(node[2])}".rstrip()

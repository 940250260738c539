"""Runs the chunks of a large model's prompt graph one after the other, as one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ldp_runtime.bundle.manifest import GraphEntry
from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.tensors import axis_sizes, empty


def passed_on(graphs: Sequence[GraphEntry]) -> frozenset[str]:
    """Names of the tensors that a chunk computes for later ones, and nobody else reads, such as the projected text."""
    read = {tensor.name for graph in graphs for tensor in graph.inputs}
    return frozenset(tensor.name for graph in graphs for tensor in graph.outputs if tensor.name in read)


class PromptChain:
    """`Engine` of several chunks: the first reads the prompt, the others read what those before pass on."""

    def __init__(self, chunks: Sequence[tuple[GraphEntry, Engine]]) -> None:
        self._chunks = list(chunks)
        self._passed_on = passed_on([graph for graph, _ in chunks])
        self.name, self.device = "prompt", self._chunks[0][1].device

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        tensors, sizes = dict(inputs), axis_sizes(self._chunks[0][0].inputs, inputs, self.name)
        for graph, engine in self._chunks:
            computed: dict[str, torch.Tensor] = {}
            for tensor in graph.outputs:
                if tensor.name in self._passed_on:
                    computed[tensor.name] = empty(tensor, sizes, self.device)
                elif tensor.name in outputs:
                    computed[tensor.name] = outputs[tensor.name]
            engine.run({tensor.name: tensors[tensor.name] for tensor in graph.inputs}, computed)
            tensors |= computed

    def close(self) -> None:
        for _, engine in self._chunks:
            engine.close()


def chained(chunks: Sequence[tuple[GraphEntry, Engine]]) -> Engine:
    """Joins the chunks of a graph, in order, into one engine."""
    return chunks[0][1] if len(chunks) == 1 else PromptChain(chunks)

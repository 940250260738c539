"""Runs the chunks of a large model's prompt graph one after the other, as one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ldp_runtime.bundle.manifest import GraphEntry
from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.tensors import axis_sizes, empty

#: Tensor that the first chunk computes for the others, and nobody else reads: the projected text.
PASSED_ON = "text"


class PromptChain:
    """`Engine` of several chunks: the first reads the prompt, the others read what it passes on."""

    def __init__(self, chunks: Sequence[tuple[GraphEntry, Engine]]) -> None:
        self._chunks = list(chunks)
        self.name, self.device = "prompt", self._chunks[0][1].device

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        tensors, sizes = dict(inputs), axis_sizes(self._chunks[0][0].inputs, inputs, self.name)
        for graph, engine in self._chunks:
            computed: dict[str, torch.Tensor] = {}
            for tensor in graph.outputs:
                if tensor.name == PASSED_ON:
                    computed[PASSED_ON] = empty(tensor, sizes, self.device)
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

"""The chunks of a large model's prompt graph, run one after the other as one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ldp_runtime.bundle.manifest import GraphEntry
from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.tensors import axis_sizes, empty

#: What the first chunk computes for the others, and nobody else reads: the projected text.
PASSED_ON = "text"


class PromptChain:
    """An `Engine`: the first chunk reads the prompt, the others what it passes on."""

    def __init__(self, chunks: Sequence[tuple[GraphEntry, Engine]]) -> None:
        self._chunks = list(chunks)
        self.name, self.device = "prompt", self._chunks[0][1].device

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        given, sizes = dict(inputs), axis_sizes(self._chunks[0][0].inputs, inputs, self.name)
        for graph, engine in self._chunks:
            here: dict[str, torch.Tensor] = {}
            for tensor in graph.outputs:
                if tensor.name == PASSED_ON:
                    here[PASSED_ON] = empty(tensor, sizes, self.device)
                elif tensor.name in outputs:
                    here[tensor.name] = outputs[tensor.name]
            engine.run({tensor.name: given[tensor.name] for tensor in graph.inputs}, here)
            given |= here

    def close(self) -> None:
        for _, engine in self._chunks:
            engine.close()


def chained(chunks: Sequence[tuple[GraphEntry, Engine]]) -> Engine:
    """The chunks of a graph, in order, as one engine."""
    return chunks[0][1] if len(chunks) == 1 else PromptChain(chunks)

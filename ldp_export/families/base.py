"""What a family is to the build: its graphs, its constants, its entry in the manifest, its reference runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Protocol, cast

import torch
from ldp_runtime.bundle.manifest import ModelEntry, Precision, QuantizedPrecision

from ldp_export.graphs.graph import Graph
from ldp_export.graphs.signature import QUANTIZED, GraphSignature
from ldp_export.verification.cases import ReferenceCases

GraphKind = Literal["text_encoder", "prompt", "blocks", "late_blocks", "decoder"]


class Family(Protocol):
    """One family. A graph is known by its name: its kind and, for chunks, `_FIRST_LAST` of the blocks it serves."""

    @property
    def entry(self) -> ModelEntry:
        """The architecture, for the manifest."""
        ...

    @property
    def text_tokens(self) -> int:
        """Longest text; 0 for models that read none."""
        ...

    @property
    def tokenizer(self) -> Path | None:
        """File of the text encoder's tokenizer, where there is one."""
        ...

    @property
    def coverage(self) -> str:
        """In words, what the reference runs cover on this machine: all scales, or the first ones of a large model."""
        ...

    @property
    def reference_bytes(self) -> int:
        """Size of the recorded reference runs."""
        ...

    @property
    def reference_memory(self) -> int:
        """Memory that recording them takes, in bytes."""
        ...

    def check_files(self) -> None:
        """Compares keys and shapes of the files with the architecture, before any long work.

        Raises:
            CheckpointError: they do not fit.
        """
        ...

    def graph_names(self, chunk: int | None) -> list[str]:
        """The graphs of a build with `chunk` blocks a graph (None: all in one), in the order in which they are run."""
        ...

    def signature(self, graph: str, precision: Precision) -> GraphSignature:
        """Inputs and outputs of a graph."""
        ...

    def graph(self, graph: str, precision: Precision) -> Graph:
        """The graph to export: weights on the meta device, shapes without values."""
        ...

    def weights(self, graph: str) -> Mapping[str, torch.Tensor]:
        """Values of the graph's weights by its own names: views of the mapped files, in the element types there."""
        ...

    def constants(self) -> dict[str, torch.Tensor]:
        """Tensors that the runtime uses between engine calls, in float32; see `ldp_runtime.families.choose`."""
        ...

    def record(
        self, precision: Precision, quantized: QuantizedPrecision | None, say: Callable[[str], None]
    ) -> ReferenceCases:
        """Runs of the reference model, and what rounding to the precision, and to that of late scales, does to them; to
        verify engines against."""
        ...


def loaded_graph(family: Family, name: str, precision: Precision = "float32") -> Graph:
    """A graph that can be run: its weights are in memory, in the element types of the precision."""
    graph = family.graph(name, precision)
    types = graph.weight_types()
    state = {key: value.to(types.get(key, value.dtype)) for key, value in family.weights(name).items()}
    graph.load_state_dict(state, assign=True)
    return graph.eval().requires_grad_(False)


def chunk_names(kind: GraphKind, depth: int, chunk: int | None) -> list[str]:
    """Names of a kind's graphs: one, or one a chunk of blocks."""
    if chunk is None or chunk >= depth:
        return [kind]
    return [f"{kind}_{first}_{min(first + chunk, depth)}" for first in range(0, depth, chunk)]


def graph_kind(graph: str) -> GraphKind:
    """Also of an engine's name, which may be a late one's."""
    if graph.startswith(QUANTIZED):
        return "late_blocks"
    return "text_encoder" if graph == "text_encoder" else cast(GraphKind, graph.split("_")[0])


def graph_blocks(graph: str, depth: int) -> tuple[int, int]:
    """First and last block that a graph or engine serves; the text encoder and the decoder serve none."""
    graph = graph.removeprefix(QUANTIZED)
    kind = graph_kind(graph)
    if kind in ("text_encoder", "decoder"):
        return 0, 0
    if graph == kind:
        return 0, depth
    _, first, last = graph.split("_")
    return int(first), int(last)


def graph_part(graph: str) -> str:
    """Which of a model's files a graph's weights are in."""
    return {"text_encoder": "text_encoder", "decoder": "vae"}.get(graph_kind(graph), "transformer")

"""What a family is to the build: its graphs, its constants, its entry in the manifest, its reference runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from ldp_runtime.bundle import ModelEntry

from ldp_export.graphs.graph import Graph
from ldp_export.graphs.signature import GraphSignature
from ldp_export.reference_cases import ReferenceCases


class Recipe(Protocol):
    """One family. Models are loaded when a graph, a constant or a reference run first needs them."""

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

    def check_files(self) -> None:
        """Compares keys and shapes of the files with the architecture, before any long work.

        Raises:
            CheckpointError: they do not fit.
        """
        ...

    def signature(self, graph: str) -> GraphSignature:
        """Inputs and outputs of a graph; `text_encoder`, `prompt`, `blocks`, `blocks_FIRST_LAST` or `decoder`."""
        ...

    def graph(self, graph: str) -> Graph:
        """The graph to export, its weights loaded."""
        ...

    def constants(self) -> dict[str, torch.Tensor]:
        """Tensors that the runtime uses between engine calls; see `ldp_runtime.families`."""
        ...

    def record(self, say: Callable[[str], None]) -> ReferenceCases:
        """Runs of the reference model, to verify engines against."""
        ...


def block_bounds(graph: str, depth: int) -> tuple[int, int]:
    """First and last block of a `blocks` graph."""
    if graph == "blocks":
        return 0, depth
    _, first, last = graph.split("_")
    return int(first), int(last)

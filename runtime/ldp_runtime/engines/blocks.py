"""Runs the `blocks` graph: rows of prompts in, logits out, keys and values straight into the cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch.nn import functional as F

from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.cache_plan import ModelShape
from ldp_runtime.engines.kv_cache import DynamicKVCache, StaticKVCache
from ldp_runtime.numerics import FiniteWatch

Cache = DynamicKVCache | StaticKVCache


@dataclass(frozen=True)
class Placement:
    """Tensors that tell the blocks the position of each token.

    Attributes:
        offsets: added to every embedded token of scale k >= 1 [scales, C]; for scale 0 see `PromptRows.start`.
        tables: for each scale, the graph's inputs with a row per token of the full grid, [h*w, ...] each.
    """

    offsets: torch.Tensor
    tables: tuple[Mapping[str, torch.Tensor], ...]

    def at(self, scale: int, kept: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Rows of the computed tokens `kept` (None: all)."""
        tables = self.tables[scale].items()
        return {name: table if kept is None else table.index_select(0, kept) for name, table in tables}


@dataclass(frozen=True)
class PromptRows:
    """Outputs of the prompt graph, one row per branch of an image.

    Attributes:
        start: token of scale 0 [R, C].
        inputs: inputs of the `blocks` graphs that depend on the prompt, by name, [R, ...] each. AdaLN's modulation is
            always there. Models with text add its mask [R, T] (True at real tokens) and each layer's keys and values
            [R, H, T, head_dim].
    """

    start: torch.Tensor
    inputs: Mapping[str, torch.Tensor]

    @property
    def rows(self) -> int:
        return self.start.shape[0]

    def take(self, rows: Sequence[int]) -> PromptRows:
        """The given rows, in the given order."""
        if list(rows) == list(range(len(rows))):  # the first rows: views, which are contiguous
            return PromptRows(self.start[: len(rows)], {name: t[: len(rows)] for name, t in self.inputs.items()})
        index = torch.as_tensor(rows, dtype=torch.int64, device=self.start.device)
        return PromptRows(self.start[index], {name: tensor[index] for name, tensor in self.inputs.items()})

    @staticmethod
    def stack(parts: Sequence[PromptRows]) -> PromptRows:
        """All rows of several prompts; shorter texts are padded and masked."""
        if len(parts) == 1:
            return parts[0]
        inputs = {name: _cat(name, [part.inputs[name] for part in parts]) for name in parts[0].inputs}
        return PromptRows(torch.cat([part.start for part in parts]), inputs)


def _cat(name: str, tensors: list[torch.Tensor]) -> torch.Tensor:
    """Concatenates the rows of one input, zero-padded along its text axis if it has one."""
    axis = 1 if name == "text_mask" else 2 if name.startswith("text_") else None
    if axis is not None:
        longest = max(tensor.shape[axis] for tensor in tensors)
        behind = (0, 0) * (tensors[0].dim() - 1 - axis)
        tensors = [F.pad(tensor, (*behind, 0, longest - tensor.shape[axis])) for tensor in tensors]
    return torch.cat(tensors)


@dataclass(frozen=True)
class BlocksChunk:
    """Blocks [first, last) as one engine; `inputs` are the names of the tensors that it reads."""

    engine: Engine
    first: int
    last: int
    inputs: frozenset[str]


class Blocks:
    """Chunks of a model, run one after the other as if they were one engine.

    Args:
        chunks: the model's blocks, in order.
        quantized: chunks that compute in 8 bits, for each set of quantized scales by its name.
    """

    def __init__(
        self,
        chunks: Sequence[BlocksChunk],
        shape: ModelShape,
        quantized: Mapping[str, Sequence[BlocksChunk]] | None = None,
    ) -> None:
        self._chunks, self._quantized = tuple(chunks), dict(quantized or {})
        self.shape = shape
        self.device = self._chunks[0].engine.device

    @property
    def chunks(self) -> tuple[BlocksChunk, ...]:
        """Chunks that are not quantized, in order."""
        return self._chunks

    def wrapped(self, wrap: Callable[[Engine], Engine]) -> Blocks:
        """The same chunks with every engine in a wrapper, which watches its calls."""

        def watched(chunks: Sequence[BlocksChunk]) -> list[BlocksChunk]:
            return [replace(chunk, engine=wrap(chunk.engine)) for chunk in chunks]

        quantized = {name: watched(chunks) for name, chunks in self._quantized.items()}
        return Blocks(watched(self._chunks), self.shape, quantized)

    def close(self) -> None:
        for chunk in chain(self._chunks, *self._quantized.values()):
            chunk.engine.close()

    def run(
        self,
        latents: torch.Tensor,
        offset: torch.Tensor,
        positions: Mapping[str, torch.Tensor],
        prompt: PromptRows,
        cache: Cache,
        *,
        scale: int,
        watch: FiniteWatch,
        remember: bool = True,
        quantized: str | None = None,
        hidden: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Runs one scale.

        Args:
            latents: inputs of the computed tokens [R, L, channels].
            offset: added to every embedded token [R, C]: the start token at scale 0, else the scale's embedding.
            positions: see `Placement.at`.
            scale: index of the scale, for error messages.
            watch: checks that the logits are finite.
            remember: append keys and values to the cache; the last scale has no use for them.
            quantized: set of quantized scales whose chunks are run; None: those that are not quantized.
            hidden: memory for the tokens behind the last block [R, L, C], of models that return them.

        Returns:
            Logits [R, L, V].

        Raises:
            NonFiniteError: the logits hold NaN or infinity; on a GPU, only `watch.check` raises it.
        """
        R, L, _ = latents.shape
        logits = latents.new_empty(R, L, self.shape.logits)
        tensors = {**positions, **prompt.inputs, **cache.counters(L), "latents": latents, "offset": offset}
        reads, writes = cache.reads(), cache.writes(L, remember)
        for chunk in self._chunks if quantized is None else self._quantized[quantized]:
            is_last = chunk.last == self.shape.depth
            out = logits if is_last else latents.new_empty(R, L, self.shape.width)
            inputs = {name: tensor for name, tensor in tensors.items() if name in chunk.inputs}
            outputs = {"logits" if is_last else "hidden_out": out}
            if is_last and hidden is not None:
                outputs["hidden_out"] = hidden
            for read, written in zip(reads[chunk.first : chunk.last], writes[chunk.first : chunk.last], strict=True):
                inputs |= read
                outputs |= written
            chunk.engine.run(inputs, outputs)
            tensors["hidden"] = out
        if remember:
            cache.advance(L)
        graph = "blocks" if quantized is None else f"{quantized}_blocks"
        watch.see(
            logits,
            f"the graph {graph!r} gave NaN or infinity at scale {scale} ({R} rows, {L} tokens)",
            hint="the engine's precision does not hold this model; verify the bundle, or build it in float32",
        )
        return logits

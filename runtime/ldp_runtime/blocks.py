"""Running the `blocks` graph: rows of prompts in, logits out, keys and values straight into the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ldp_runtime.engines.base import Engine
from ldp_runtime.errors import NonFiniteError
from ldp_runtime.kv_cache import KVCache

#: Rotary cosines and sines of the tokens of a call: two tensors [L, head_dim / 2].
Rope = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the transformer that the runtime needs: see the bundle's manifest."""

    depth: int
    width: int
    heads: int
    bits: int
    text_channels: int

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True)
class PromptRows:
    """What the prompt graph computed, one row per branch of an image.

    Attributes:
        start: the token of scale 0 [R, C].
        modulation: AdaLN of the blocks [R, 6, C]; head_modulation: of the head [R, 2, C].
        mask: True at real text tokens [R, T].
        text_kv: keys and values of the text of each layer, [R, H, T, head_dim] each.
    """

    start: torch.Tensor
    modulation: torch.Tensor
    head_modulation: torch.Tensor
    mask: torch.Tensor
    text_kv: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    @property
    def rows(self) -> int:
        return self.start.shape[0]

    def take(self, rows: Sequence[int]) -> PromptRows:
        """These rows, in this order."""
        index = torch.as_tensor(rows, device=self.start.device)
        return PromptRows(
            self.start[index],
            self.modulation[index],
            self.head_modulation[index],
            self.mask[index],
            tuple((k[index], v[index]) for k, v in self.text_kv),
        )

    @staticmethod
    def stack(parts: Sequence[PromptRows]) -> PromptRows:
        """All rows of several prompts; shorter texts are padded and masked."""
        if len(parts) == 1:
            return parts[0]
        longest = max(part.mask.shape[1] for part in parts)

        def pad(tensor: torch.Tensor) -> torch.Tensor:  # [R, H, T, c] -> [R, H, longest, c]
            return F.pad(tensor, (0, 0, 0, longest - tensor.shape[2]))

        return PromptRows(
            torch.cat([p.start for p in parts]),
            torch.cat([p.modulation for p in parts]),
            torch.cat([p.head_modulation for p in parts]),
            torch.cat([F.pad(p.mask, (0, longest - p.mask.shape[1])) for p in parts]),
            tuple(
                (torch.cat([pad(k) for k, _ in layer]), torch.cat([pad(v) for _, v in layer]))
                for layer in zip(*(p.text_kv for p in parts), strict=True)
            ),
        )


@dataclass(frozen=True)
class BlocksChunk:
    """Blocks [first, last) as one engine."""

    engine: Engine
    first: int
    last: int


class Blocks:
    """The chunks of a model, run one after the other as if they were one engine."""

    def __init__(self, chunks: Sequence[BlocksChunk], shape: ModelShape) -> None:
        self._chunks = tuple(chunks)
        self.shape = shape
        self.device = self._chunks[0].engine.device

    def new_cache(self, capacity: int, rows: int) -> KVCache:
        return KVCache(self.shape.depth, capacity, rows, self.shape.heads, self.shape.head_dim, self.device)

    def close(self) -> None:
        for chunk in self._chunks:
            chunk.engine.close()

    def run(
        self,
        latents: torch.Tensor,
        offset: torch.Tensor,
        rope: Rope,
        prompt: PromptRows,
        cache: KVCache,
        *,
        scale: int,
        remember: bool = True,
    ) -> torch.Tensor:
        """One scale.

        Args:
            latents: inputs of the computed tokens [R, L, bits].
            offset: added to every embedded token [R, C]: the start token at scale 0, else the scale's embedding.
            scale: index, for error messages.
            remember: append keys and values to the cache; the last scale has no use for them.

        Returns:
            Logit pairs [R, L, 2 * bits].

        Raises:
            NonFiniteError: the logits hold NaN or infinity.
        """
        R, L, _ = latents.shape
        logits = latents.new_empty(R, L, 2 * self.shape.bits)
        x, names = latents, ("latents", "offset")
        for chunk in self._chunks:
            is_last = chunk.last == self.shape.depth
            out = logits if is_last else latents.new_empty(R, L, self.shape.width)
            inputs = {names[0]: x, "cos": rope[0], "sin": rope[1], "modulation": prompt.modulation}
            if chunk.first == 0:
                inputs["offset"] = offset
            if is_last:
                inputs["head_modulation"] = prompt.head_modulation
            inputs["text_mask"] = prompt.mask
            outputs = {"logits" if is_last else "hidden_out": out}
            for layer in range(chunk.first, chunk.last):
                inputs[f"text_k_{layer}"], inputs[f"text_v_{layer}"] = prompt.text_kv[layer]
                inputs[f"past_k_{layer}"], inputs[f"past_v_{layer}"] = cache.past(layer)
                if remember:
                    outputs[f"new_k_{layer}"], outputs[f"new_v_{layer}"] = cache.slots(layer, L)
            chunk.engine.run(inputs, outputs)
            x, names = out, ("hidden",)
        if remember:
            cache.advance(L)
        if not bool(logits.isfinite().all()):
            raise NonFiniteError(
                f"the graph 'blocks' gave NaN or infinity at scale {scale} ({R} rows, {L} tokens)",
                hint="the engine's precision does not hold this model; verify the bundle, or build it in float32",
            )
        return logits

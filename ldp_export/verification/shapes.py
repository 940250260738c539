"""Checks of the blocks alone, at the shapes that the recorded runs do not reach; see `recording/shapes.py`.

Each chunk gets the recorded hidden states of its first block, so that memory holds the past of one chunk at a time.
"""

from __future__ import annotations

import torch
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines.blocks import BlocksChunk, PromptRows
from ldp_runtime.families.choose import placement
from ldp_runtime.pipeline.open_engines import Engines

from ldp_export.verification.case_runs import case_rows
from ldp_export.verification.cases import Shape
from ldp_export.verification.checks import Add, bad_numbers_fail, compare
from ldp_export.verification.coverage import shapes_to_check
from ldp_export.verification.tolerances import Limits


def check_shapes(bundle: Bundle, engines: Engines, limits: Limits, add: Add) -> None:
    """Checks every chunk of blocks at every recorded shape."""
    reference = limits.reference
    if not reference.shapes:
        return
    prompt = case_rows(bundle, engines, reference, reference.cases[0])
    for shape in shapes_to_check(bundle, reference.shapes):
        call = _Call(bundle, engines, limits, shape, prompt)
        for chunk in engines.blocks.chunks:
            with bad_numbers_fail(f"{shape.name}, blocks {chunk.first} to {chunk.last}", add):
                call.check(chunk, add)


class _Call:
    """Inputs of one shape's calls, and what they should give."""

    def __init__(self, bundle: Bundle, engines: Engines, limits: Limits, shape: Shape, prompt: PromptRows) -> None:
        self.limits, self.shape, self.prompt, self.blocks = limits, shape, prompt, engines.blocks
        self.device, self.model = engines.blocks.device, bundle.manifest.model
        placed = placement(bundle.manifest.model, engines.constants, bundle.manifest.schedule())
        self.kinds = self._tensor("kinds").to(self.device)
        self.offset = placed.offsets[shape.scale].expand(prompt.rows, -1).contiguous()
        self.positions = placed.at(shape.scale, self._tensor("positions").to(self.device)[self.kinds])

    def _tensor(self, name: str) -> torch.Tensor:
        return self.limits.reference.tensors[f"{self.shape.name}.{name}"]

    def check(self, chunk: BlocksChunk, add: Add) -> None:
        """Compares every row of a chunk's output with the recorded one of its kind."""
        model, is_last = self.blocks.shape, chunk.last == self.blocks.shape.depth
        width = model.logits if is_last else model.width
        out = torch.empty(self.prompt.rows, self.shape.tokens, width, device=self.device)
        reads, writes = self._memory(chunk)
        given = {**self.positions, **self.prompt.inputs, **reads, **self._inputs(chunk)}
        inputs = {name: tensor for name, tensor in given.items() if name in chunk.inputs}
        chunk.engine.run(inputs, {"logits" if is_last else "hidden_out": out, **writes})
        name = "logits" if is_last else f"hidden_{chunk.last}"
        expected = self._tensor(name)[:, self.kinds.cpu()]
        limit = self.limits.shape(f"{self.shape.name}.{name}", expected)
        shape = f"{self.shape.tokens} tokens after {self.shape.past}"
        add(compare(f"{self.shape.name} ({shape}), blocks {chunk.first} to {chunk.last}", out, expected, limit))

    def _inputs(self, chunk: BlocksChunk) -> dict[str, torch.Tensor]:
        if chunk.first == 0:
            latents = self._tensor("latents")[None].expand(self.prompt.rows, -1, -1)
            return {"latents": self._spread(latents), "offset": self.offset}
        return {"hidden": self._spread(self._tensor(f"hidden_{chunk.first}"))}

    def _spread(self, of_kinds: torch.Tensor) -> torch.Tensor:
        """Tensor of the kinds [R, kinds, n], for each token [R, L, n]."""
        return of_kinds.to(self.device)[:, self.kinds].contiguous()

    def _memory(self, chunk: BlocksChunk) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Inputs and outputs of a chunk's keys and values, whose past is filled; none of a model without a cache."""
        reads: dict[str, torch.Tensor] = {}
        writes: dict[str, torch.Tensor] = {}
        if not self.model.cached_layers:
            return reads, writes
        model, kinds = self.blocks.shape, self._tensor("past_kinds").to(self.device)
        dtype = getattr(torch, model.cache)
        for i in range(chunk.first, chunk.last):
            for kind in "kv":
                past = self.limits.reference.tensors[f"shapes.past_{kind}_{i}"].to(
                    self.device, getattr(torch, model.cache)
                )
                if model.cache_tokens is None:
                    reads[f"past_{kind}_{i}"] = past.transpose(0, 1)[kinds].contiguous()  # [P, R, H, c]
                    new = (self.shape.tokens, *reads[f"past_{kind}_{i}"].shape[1:])
                    writes[f"new_{kind}_{i}"] = torch.empty(new, device=self.device, dtype=dtype)
                    continue
                cache = past.new_zeros(len(past), past.shape[2], model.cache_tokens, past.shape[3])  # [R, H, M, c]
                cache[:, :, : self.shape.past] = past[:, kinds].transpose(1, 2)
                reads[f"cache_{kind}_{i}"] = writes[f"present_{kind}_{i}"] = cache
        if model.cache_tokens is not None:
            ends = (("written", self.shape.past), ("lengths", self.shape.past + self.shape.tokens))
            reads |= {name: torch.full((self.prompt.rows,), end, device=self.device) for name, end in ends}
        return reads, writes

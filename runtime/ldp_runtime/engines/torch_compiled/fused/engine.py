"""Engine of Infinity's blocks that PyTorch compiles when they are loaded, with CUDA graphs of its small calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ldp_runtime.bundle.manifest import GraphEntry
from ldp_runtime.engines.kv_cache import DynamicKVCache
from ldp_runtime.engines.tensors import check_tensor
from ldp_runtime.engines.torch_compiled.cuda_graphs import CudaGraphs
from ldp_runtime.engines.torch_compiled.engine import named_failures
from ldp_runtime.engines.torch_compiled.fused.pieces import ask_text, attend, feed_forward, modulate, project
from ldp_runtime.engines.torch_compiled.fused.products import Matrix, product
from ldp_runtime.engines.torch_compiled.fused.text import Text, TextReader, TextRoom
from ldp_runtime.engines.torch_compiled.fused.weights import FusedWeights, read_weights
from ldp_runtime.engines.torch_compiled.threads import default_torch_threads, torch_threads
from ldp_runtime.errors import ClosedError

#: Calls of at most this many tokens times rows replay CUDA graphs: an H100 computes them faster than they launch.
GRAPHED_ROW_TOKENS = 2560


#: Most compilations of each piece in one process. A piece is compiled for each kind of call (one or more rows, one or
#: more tokens), each precision and each model. PyTorch's own limit is 8.
_COMPILATIONS = 64


class CacheView(NamedTuple):
    """Keys (or values) of one block.

    Attributes:
        new: those of the new positions [L, R, H, c].
        seen: all that are attended to [P + L, R, H, c]; the new ones are the last.
    """

    new: torch.Tensor
    seen: torch.Tensor


class FusedEngine:
    """Engine of blocks [first, last) of Infinity: see `pieces.py`.

    The first chunk of a model embeds, the last holds the head. Keys and values are written where they are read: right
    behind the past, where the KV cache holds their positions. A caller that gives another tensor, or none, pays a copy
    of the past.

    Args:
        graph: inputs and outputs of the engine.
        tokens: tokens of the largest call: the compiler tunes its kernels for the first size that it sees.
        text_tokens: tokens of the longest text.
        threads: threads of a CPU engine's calls; None: see `default_torch_threads`.
        compiled: False runs the pieces without compiling them.
        graphs: CUDA graphs that replay small calls on a GPU; None launches such calls kernel by kernel.
        full_scales: numbers of past and new tokens of calls that graphs are for; None: of any. See `graph_cache.py`.

    `run` raises ConfigError when a tensor does not fit the signature, and CapacityError when memory runs out.
    """

    def __init__(
        self,
        name: str,
        weights: FusedWeights,
        graph: GraphEntry,
        device: torch.device | str = "cpu",
        *,
        tokens: int,
        text_tokens: int,
        threads: int | None = None,
        compiled: bool = True,
        graphs: CudaGraphs | None = None,
        full_scales: frozenset[tuple[int, int]] | None = None,
    ) -> None:
        self.name, self.device = name, torch.device(device)
        self._graph, self._graphs, self._weights, self._full_scales = graph, graphs, weights, full_scales
        self._threads = (threads or default_torch_threads()) if self.device.type == "cpu" else None
        self._result = graph.outputs[0].name
        self._kept = [entry.name for entry in graph.outputs[1:]]
        self._reader, self._room = TextReader(graph.first, graph.last), TextRoom(text_tokens)
        self._project, self._ask_text, self._feed_forward = project, ask_text, feed_forward
        if compiled:
            _mark_static(weights)
            pieces = (project, ask_text, feed_forward)
            self._project, self._ask_text, self._feed_forward = (_compiled(piece, self.device) for piece in pieces)
            for rows in (2, 1):
                self._compile_for(tokens, rows)

    @classmethod
    def load(cls, name: str, path: Path, graph: GraphEntry, device: torch.device, **options: Any) -> FusedEngine:
        """Opens the engine from the file of its weights; options as above. Raises IntegrityError if there are none."""
        return cls(name, read_weights(name, path, graph.last - graph.first, device), graph, device, **options)

    @torch.no_grad()
    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        if not self._weights.blocks:
            raise ClosedError(f"the engine {self.name!r} is closed", hint="load the bundle again: Pipeline.load(...)")
        tensors = {entry.name: check_tensor(inputs[entry.name], entry, self.name) for entry in self._graph.inputs}
        with torch_threads(self._threads), named_failures(self.name, tensors), _many_compilations():
            places = self._places(tensors, outputs)
            outputs[self._result].copy_(self._run(tensors, places))
            for name in self._kept:
                if name in outputs and places[name].new.data_ptr() != outputs[name].data_ptr():
                    outputs[name].copy_(places[name].new)

    def close(self) -> None:
        self._weights = FusedWeights([], None, None)
        self._reader.clear()
        self._room.clear()
        if self._graphs is not None:
            self._graphs.clear()

    def _places(self, given: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> dict[str, CacheView]:
        """Views of the new keys and values, by the name of the output that returns them."""
        tokens = len(given["cos"])
        return {name: _place(given[_past(name)], outputs.get(name), tokens) for name in self._kept}

    def _run(self, given: Mapping[str, torch.Tensor], places: Mapping[str, CacheView]) -> torch.Tensor:
        text, mask = self._reader.read(given), given["text_mask"]
        small = {name: tensor for name, tensor in given.items() if not name.startswith(("text_", "past_"))}
        rows, tokens = len(mask), len(given["cos"])
        past = len(next(iter(places.values())).seen) - tokens
        if self._graphs is None or not self._is_graphed(rows, past, tokens):
            return self._compute(places, self._reader.masked(text, mask), small)
        text = self._room.place(text, mask)
        seen = tuple(place.seen.data_ptr() for place in places.values())

        # The last scale's keys and values overwrite the past of layers that have run: such a call cannot be run again.
        def call(*own: torch.Tensor) -> torch.Tensor:
            return self._compute(places, text, dict(zip(small, own, strict=True)))

        where = (seen, past + tokens, self._room.moved, text.keys[0].shape[2])
        return self._graphs.run(call, list(small.values()), where)

    def _is_graphed(self, rows: int, past: int, tokens: int) -> bool:
        """True for small calls that come back; the others are counted."""
        assert self._graphs is not None
        small = rows * tokens <= GRAPHED_ROW_TOKENS
        graphed = small and (self._full_scales is None or (past, tokens) in self._full_scales)
        self._graphs.counters.plain += not graphed
        return graphed

    def _compute(self, places: Mapping[str, CacheView], text: Text, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits, or the input of the next chunk: [R, L, ...]."""
        weights, modulation = self._weights, given["modulation"]
        rotation = given["cos"], given["sin"]
        if weights.embedding is None:
            x = given["hidden"].transpose(0, 1).contiguous()
        else:
            latents = given["latents"].transpose(0, 1).to(weights.embedding.dtype)
            x = torch.nn.functional.linear(latents, weights.embedding).float() + given["offset"]
        for i, w in enumerate(weights.blocks, start=self._graph.first):
            keys, values = places[f"new_k_{i}"], places[f"new_v_{i}"]
            q = self._project(x, modulation, *rotation, w, keys.new, values.new)
            attended = attend(q, keys.seen.permute(1, 2, 0, 3), values.seen.permute(1, 2, 0, 3), 1.0)
            x, q = self._ask_text(x, attended, modulation, w)
            k, v = text.keys[i - self._graph.first], text.values[i - self._graph.first]
            attended = attend(q, k, v, q.shape[-1] ** -0.5, text.broadcast_mask)
            x = self._feed_forward(x, attended, modulation, w)
        if weights.head is not None:
            scale, shift = given["head_modulation"].unbind(1)
            x = product(modulate(x, scale, shift), weights.head)
        return x.transpose(0, 1)

    @torch.no_grad()
    def _compile_for(self, tokens: int, rows: int) -> None:
        """Compiles the pieces on one block at the largest size, its keys and values where a call would write them."""
        w = self._weights.blocks[0]
        C, heads = w.norm.shape[0], w.temperature.shape[0]
        kind: dict[str, Any] = {"dtype": torch.float32, "device": self.device}
        x, modulation = (torch.randn(*shape, C, **kind) for shape in ((tokens, rows), (rows, 6)))
        cos, sin = (torch.ones(tokens, C // heads // 2, **kind) for _ in range(2))
        cache = DynamicKVCache(1, tokens, rows, heads, C // heads, self.device, w.qkv.bias.dtype)
        keys, values = (slot.detach() for slot in cache.slots(tokens)[0])
        with torch_threads(self._threads), named_failures(self.name, {}), _many_compilations():
            q = self._project(x, modulation, cos, sin, w, keys, values)
            x, q = self._ask_text(x, q.flatten(2).detach(), modulation, w)
            self._feed_forward(x, q.flatten(2).detach(), modulation, w)


def _past(new: str) -> str:
    return new.replace("new_", "past_")


def _place(past: torch.Tensor, new: torch.Tensor | None, tokens: int) -> CacheView:
    """View of `tokens` new positions behind `past` [P, R, H, c]: of `new` if it lies there, else of a copy."""
    P, end = len(past), past.data_ptr() + past.nbytes
    if new is not None and new.is_contiguous() and (P == 0 or (past.is_contiguous() and new.data_ptr() == end)):
        seen = new if P == 0 else past.as_strided((P + tokens, *past.shape[1:]), past.stride())
        return CacheView(new.detach(), seen)
    seen = past.new_empty(P + tokens, *past.shape[1:])
    seen[:P].copy_(past)
    return CacheView(seen[P:].detach(), seen)


def _compiled(piece: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compiles a piece for any number of rows and tokens.

    One row or one token is a case of its own, in every width and precision. The KV cache keeps positions aligned, which
    the compiler cannot see for itself.
    """
    name = "cpp.dynamic_threads" if device.type == "cpu" else "assume_aligned_inputs"
    options: dict[str, str | int | bool | Callable[..., Any]] = {name: True}
    return torch.compile(piece, dynamic=True, fullgraph=True, options=options)


def _many_compilations() -> Any:
    from torch._dynamo import config as dynamo_config

    return dynamo_config.patch(recompile_limit=_COMPILATIONS)


def _mark_static(weights: FusedWeights) -> None:
    """Marks the shapes of weights as fixed: rows and tokens vary, but widths that varied too would cost speed."""
    from torch._dynamo import mark_static

    for block in weights.blocks:
        for part in block:
            for tensor in part if isinstance(part, Matrix) else (part,):
                mark_static(tensor)

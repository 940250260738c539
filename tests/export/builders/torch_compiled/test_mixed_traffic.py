"""Graphs under mixed traffic: few captures, however requests differ. Graphs are stood in for on a CPU."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.engine_runs import engines_of
from helpers.requests import image
from helpers.samples import TRANSFORMER, random_texts, random_transformer
from ldp_runtime import Pipeline
from ldp_runtime.bundle.manifest import GraphEntry
from ldp_runtime.engines.blocks import Blocks, BlocksChunk
from ldp_runtime.engines.cache_plan import ModelShape
from ldp_runtime.engines.graph_cache import GraphCounters, full_scales
from ldp_runtime.engines.torch_compiled import cuda_graphs
from ldp_runtime.engines.torch_compiled.cuda_graphs import CudaGraphs
from ldp_runtime.engines.torch_compiled.fused.engine import FusedEngine
from ldp_runtime.pipeline.drawing import Drawing
from ldp_runtime.pipeline.request import ImageRequest

from ldp_export.builders.torch_compiled.fused import fused_weights
from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.graphs.signature import tensor_entries

POLICIES = ("none", "ld", "ld-fast", "ld-paper", "ld-skip-2", "none:stop=3", "top-k:score=random")
RATIOS = (1.0, 1.0, 1.0, 2.0, 0.5)
TEXTS = random_texts([3, 7, 16, 5])


class StandIn:
    """A graph that computes its call anew: from its own inputs, at the addresses of its capture."""

    def __init__(self, call: Callable[..., Any], inputs: list[torch.Tensor], output: torch.Tensor) -> None:
        self._call, self._inputs, self._output = call, inputs, output

    def replay(self) -> None:
        self._output.copy_(self._call(*self._inputs))


class StandIns(CudaGraphs):
    def _capture(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> tuple[Any, Any]:
        own = [tensor.clone() for tensor in inputs]
        answer = call(*own)
        output = answer.clone()
        return cuda_graphs._Captured(StandIn(call, own, output), own, output), answer  # pyright: ignore


def with_graphs(pipe: Pipeline, graphs: CudaGraphs | None) -> Pipeline:
    """The pipeline with fused blocks, four slots and these graphs."""
    graph = InfinityBlocksGraph(random_transformer())
    inputs, outputs = (tensor_entries(specs) for specs in (graph.signature.inputs, graph.signature.outputs))
    entry = GraphEntry(kind="blocks", file="", inputs=inputs, outputs=outputs, first=0, last=TRANSFORMER.depth)
    limits, full = pipe.manifest.limits, full_scales(pipe.manifest.schedules())
    sizes = {"tokens": limits.tokens, "text_tokens": limits.text_tokens}
    engine = FusedEngine(
        "blocks", fused_weights(graph), entry, **sizes, threads=1, compiled=False, graphs=graphs, full_scales=full
    )
    chunk = BlocksChunk(engine, 0, TRANSFORMER.depth, frozenset(tensor.name for tensor in inputs))
    engines = replace(engines_of(pipe), blocks=Blocks([chunk], ModelShape.of(pipe.manifest, writes_all=True)))
    return Pipeline(pipe.manifest, engines, pipe._tokenizer, 4, pipe.root)


class Traffic:
    """Strangers' requests: some together, some between the steps of others, some given up."""

    def __init__(self, pipe: Pipeline, seed: int) -> None:
        self.pipe, self._chance = pipe, random.Random(seed)
        self._running: list[Drawing] = []
        self._cancelled: list[object] = []
        self.drawn: list[tuple[ImageRequest, torch.Tensor]] = []

    def step(self) -> None:
        chance = self._chance
        if len(self._running) < 3 and (not self._running or chance.random() < 0.1):
            ratio, policy = chance.choice(RATIOS), chance.choice(POLICIES)
            requests = [self._image(ratio, policy) for _ in range(chance.choice((1, 1, 2, 3, 4)))]
            self._running.append(self.pipe.start(requests))
        drawing = chance.choice(self._running)
        if chance.random() < 0.01:
            index = chance.randrange(len(drawing.images))
            drawing.cancel(index)
            self._cancelled.append(drawing._states[index])
        if chance.random() < 0.005:
            drawing.close()
        if not drawing.is_done:
            drawing.step()
            if drawing.is_done:
                for request, state in zip(drawing.images, drawing._states, strict=True):
                    if state not in self._cancelled:
                        self.drawn.append((request, state.latent))
        if drawing.is_done:
            self._running.remove(drawing)

    def _image(self, ratio: float, policy: str) -> ImageRequest:
        chance = self._chance
        own = chance.choice(POLICIES) if chance.random() < 0.2 else policy
        guidance = chance.choice((None, None, 1.0))
        options = {"seed": chance.randrange(100), "aspect_ratio": ratio, "guidance_scale": guidance}
        return image(self.pipe, prompt_embeds=chance.choice(TEXTS), policy=own, **options)


def test_few_calls_are_captures(small_pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more kinds of calls than graphs here: those that are in use are kept, and no others are captured."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    counters = GraphCounters()
    traffic = Traffic(with_graphs(small_pipe, StandIns(counters)), seed=1)
    while counters.refusals == 0:  # the warm-up ends where the bound is reached
        traffic.step()
    assert counters.calls < 2000
    before = replace(counters)
    while counters.calls < before.calls + 1000:
        traffic.step()
    calls, captures = counters.calls - before.calls, counters.captures - before.captures
    assert calls == 1000
    assert captures < calls / 100
    assert counters.replays - before.replays > calls / 10
    plain = with_graphs(small_pipe, None)
    for request, latent in traffic.drawn[-4:]:  # replays read and write where their calls would
        drawing = plain.start([request])
        while not drawing.is_done:
            drawing.step()
        torch.testing.assert_close(drawing.results()[0][0], latent, atol=1e-5, rtol=0)

"""Requests for a server and its scheduler, and what came of them."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from ldp_runtime import Pipeline
from ldp_runtime.engines.base import Engine
from ldp_runtime.pipeline.request import ImageRequest, make_request
from ldp_runtime.pruning.parse import parse_policy
from ldp_serving.events import Drawn, Event, Failed, Partial
from ldp_serving.limits import Limits
from ldp_serving.scheduler import Scheduler

from helpers.engine_runs import engines_of


def image(pipe: Pipeline, *, policy: str = "none", **options: Any) -> ImageRequest:
    """One checked image."""
    plain: dict[str, Any] = dict.fromkeys(
        ("prompt", "class_labels", "prompt_embeds", "negative_prompt", "negative_prompt_embeds", "guidance_scale",
         "temperature", "top_k", "top_p", "seed", "aspect_ratio", "height", "width")
    )  # fmt: skip
    plain |= {"num_images_per_prompt": 1, "output_type": "pil", "cfg_insertion_layer": (0,), "more_smooth": False}
    plain |= {"prompt": "a red circle", "policy": parse_policy(policy), "seed": 0} | options
    return make_request(pipe.manifest, **plain).images[0]


class Inbox:
    """Events of one request."""

    def __init__(self) -> None:
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.seen: list[Event] = []

    def __call__(self, event: Event) -> None:
        self._events.put(event)

    def ends(self, count: int = 1, timeout: float = 60) -> list[Drawn | Failed]:
        """The ends of `count` pictures, as they come."""
        ended: list[Drawn | Failed] = []
        while len(ended) < count:
            event = self._events.get(timeout=timeout)
            self.seen.append(event)
            if isinstance(event, Drawn | Failed):
                ended.append(event)
        return ended

    def partials(self) -> list[Partial]:
        return [event for event in self.seen if isinstance(event, Partial)]


def scheduler(pipe: Pipeline, **options: Any) -> Scheduler:
    """A scheduler whose turns the test takes, or whose thread it starts."""
    extra = {name: options.pop(name) for name in ("previews", "watch", "clock") if name in options}
    return Scheduler(pipe, Limits(**options), **extra)


def run_dry(schedule: Scheduler) -> int:
    """Takes turns until nothing is left; returns their number."""
    turns = 0
    while schedule.turn() or schedule.waiting:
        turns += 1
    return turns


class WatchedEngine:
    """A real engine; `before` is called with its name and inputs before each run."""

    def __init__(self, engine: Engine, before: Callable[[str, Mapping[str, torch.Tensor]], object]) -> None:
        self.name, self.device = engine.name, engine.device
        self._engine, self._before = engine, before

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        self._before(self.name, inputs)
        self._engine.run(inputs, outputs)

    def close(self) -> None:
        """The engine belongs to another pipeline."""


def watched(pipe: Pipeline, before: Callable[[str, Mapping[str, torch.Tensor]], object]) -> Pipeline:
    """A pipeline of the same engines, each watched."""
    engines = engines_of(pipe)
    around = {name: getattr(engines, name) for name in ("text_encoder", "prompt", "decoder")}
    wrapped = {name: WatchedEngine(engine, before) for name, engine in around.items() if engine is not None}
    blocks = engines.blocks.wrapped(lambda engine: WatchedEngine(engine, before))
    return Pipeline(pipe.manifest, replace(engines, blocks=blocks, **wrapped), pipe._tokenizer, pipe.max_batch)


def alone(pipe: Pipeline, request: ImageRequest) -> bytes:
    """Pixels of a request drawn by itself."""
    drawing = pipe.start([request])
    while not drawing.is_done:
        drawing.step()
    return pipe.decode(drawing.results()[0][0][None])[0].tobytes()

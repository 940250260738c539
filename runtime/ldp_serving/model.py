"""Served model: a pipeline with its scheduler, and what clients may ask of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.saved_policies import resolve_policy
from ldp_runtime.errors import ConfigError
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pipeline.request import ImageRequest, make_request

from ldp_serving.events import Drawn, Event, Failed
from ldp_serving.limits import Limits
from ldp_serving.preview import fit_previews
from ldp_serving.scheduler import Scheduler
from ldp_serving.watch import Watch


@dataclass(frozen=True)
class ServedModel:
    """One model of a server.

    Attributes:
        name: by which clients ask for it.
        policy: text of the policy of requests that name none.
        allowed: texts of the policies that clients may name.
        created: Unix time at which it was loaded.
    """

    name: str
    pipeline: Pipeline
    scheduler: Scheduler
    metrics: Watch
    policy: str = "ld"
    allowed: tuple[str, ...] = ()
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def classes(self) -> int | None:
        """Number of classes of a class-conditional model; None for one that reads texts."""
        model = self.pipeline.manifest.model
        return None if model.reads_text else getattr(model, "classes", None)


def check_servable(manifest: Manifest, root: Path | None, policies: Sequence[str]) -> None:
    """Checks that requests of clients can be drawn.

    Args:
        root: of the bundle, for its saved policies.

    Raises:
        ConfigError: the bundle reads text features only, or a policy is unknown or does not fit it.
    """
    if manifest.model.reads_text and not manifest.has_text_encoder:
        raise ConfigError(f"{manifest.model.name} has no text encoder", hint="build it with --text-encoder")
    for text in policies:
        policy = resolve_policy(text, root, manifest)
        for schedule in manifest.schedules():
            if policy is not None:
                policy.check(schedule)


def open_model(
    pipeline: Pipeline,
    name: str,
    limits: Limits,
    watch: Watch,
    *,
    policy: str = "ld",
    allowed: tuple[str, ...] = (),
    previews: int = 40,
    on_picture: Callable[[], None] = lambda: None,
) -> ServedModel:
    """Warms a pipeline up and starts its scheduler.

    Args:
        previews: number of pictures that the decoder of partial images is fitted to; 0: the bundle's own decoder.
        on_picture: is called now and then; what it raises ends the warm-up.

    Raises:
        ConfigError: see `check_servable`.
    """
    check_servable(pipeline.manifest, pipeline.root, (policy, *allowed))
    on_picture()
    pipeline.warmup(limits.max_batch)
    fitted = fit_previews(pipeline, previews, on_picture=on_picture) if previews else None
    scheduler = Scheduler(pipeline, limits, fitted, watch)
    model = ServedModel(name, pipeline, scheduler, watch, policy, allowed)
    _measure(model)
    scheduler.start()
    return model


def _measure(model: ServedModel) -> None:
    """Draws two pictures with the server's policy: waits and places of previews are then predicted from the start."""
    for seed in range(2):
        ended: list[Event] = []
        model.scheduler.submit([_any_request(model, seed)], ended.append)
        while not any(isinstance(event, Drawn | Failed) for event in ended):
            model.scheduler.turn()


def _any_request(model: ServedModel, seed: int) -> ImageRequest:
    classes = model.classes
    return make_request(
        model.pipeline.manifest,
        prompt=None if classes else "a picture",
        class_labels=0 if classes else None,
        prompt_embeds=None,
        negative_prompt=None,
        negative_prompt_embeds=None,
        guidance_scale=None,
        temperature=None,
        top_k=None,
        top_p=None,
        num_images_per_prompt=1,
        seed=seed,
        policy=resolve_policy(model.policy, model.pipeline.root, model.pipeline.manifest),
        aspect_ratio=None,
        height=None,
        width=None,
        output_type="pil",
        cfg_insertion_layer=(0,),
        more_smooth=None,
    ).images[0]

"""Loading of a bundle into a served model, with the options that every front has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import ConfigError
from ldp_runtime.pipeline.open_engines import device_of
from ldp_runtime.pipeline.pipeline import Pipeline

from ldp_serving.limits import Interleave, Limits, most_in_flight
from ldp_serving.model import ServedModel, open_model
from ldp_serving.watch import Watch


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Options of served models, whatever front they are behind; see `ldp-export serve --help`.

    Raises:
        ConfigError: an option is out of its range.
    """

    device: str = "cpu"
    threads: int | None = None
    max_batch: int = 4
    max_in_flight: int | None = None
    max_queue: int = 64
    max_images: int = 10
    policy: str = "ld"
    allow_policy: Sequence[str] = ()
    timeout_s: float = 120.0
    interleave: Interleave = "previews"
    hooks: str | None = None
    previews: int = 40

    def __post_init__(self) -> None:
        self.limits(1)
        if not 1 <= self.max_images <= self.max_queue:
            raise ConfigError(
                f"--max-images must lie between 1 and --max-queue ({self.max_queue}), got {self.max_images}",
                hint="a request's pictures wait together",
            )
        if self.previews < 0:
            raise ConfigError(f"--previews counts up from nothing, got {self.previews}", hint="leave it out")

    def limits(self, in_flight: int) -> Limits:
        """Limits of a scheduler that draws so many pictures at a time.

        Raises:
            ConfigError: they are out of their range.
        """
        return Limits(self.max_batch, in_flight, self.max_queue, self.timeout_s, self.interleave)

    def of_model(self) -> dict[str, Any]:
        """These options alone, by name, of a front that has more."""
        return {field.name: getattr(self, field.name) for field in fields(ModelOptions)}


def load_model(
    opened: Bundle,
    options: ModelOptions,
    watch: Watch,
    name: str | None = None,
    on_picture: Callable[[], None] = lambda: None,
    quote_prompts: bool = False,
) -> ServedModel:
    """Loads a bundle, warms it up and starts its scheduler.

    Args:
        name: by which clients ask for the model; None: the bundle's own.
        on_picture: is called now and then; what it raises ends the loading.
        quote_prompts: the log may quote clients' prompts.

    Raises:
        ConfigError, LdpError: the bundle cannot be served; see `Pipeline.load`.
    """
    device = device_of(options.device)
    flying = most_in_flight(opened.manifest, device, options.max_batch, options.max_in_flight)
    pipeline = Pipeline.load(
        opened,
        device=device,
        threads=options.threads,
        max_batch=options.max_batch,
        slots=flying,
        quote_prompts=quote_prompts,
    )
    try:
        return open_model(
            pipeline,
            name or opened.manifest.model.name,
            options.limits(flying),
            watch,
            policy=options.policy,
            allowed=tuple(options.allow_policy),
            previews=options.previews,
            on_picture=on_picture,
        )
    except BaseException:
        pipeline.close()
        raise

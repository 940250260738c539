"""Limits of one model's scheduler, and how many pictures its memory holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.errors import CapacityError, ConfigError
from ldp_runtime.pipeline.memory import available_memory, estimate_memory

#: "never": newcomers start when what runs is finished. "early": their early scales go between others' late ones.
#: "previews": so do those of newcomers that asked for partial images; the others wait, which ends pictures sooner.
Interleave = Literal["never", "previews", "early"]

#: Batches in flight where nobody says how many pictures: one that draws, one whose early scales are drawn meanwhile.
_BATCHES_IN_FLIGHT = 2


@dataclass(frozen=True)
class Limits:
    """Bounds of what is drawn and of what waits.

    Attributes:
        max_batch: most pictures that start together.
        max_in_flight: most pictures that are being drawn.
        max_queue: most pictures that wait.
        timeout_s: seconds after which a request is given up, wherever it is.
        interleave: place of newcomers' early scales.
        promote_s: seconds of waiting that count as one step of priority, so that nothing starves.
    """

    max_batch: int = 4
    max_in_flight: int = 8
    max_queue: int = 64
    timeout_s: float = 120.0
    interleave: Interleave = "previews"
    promote_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_in_flight", "max_queue"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}", hint="leave it out")
        if not (self.timeout_s > 0 and self.promote_s > 0):
            raise ConfigError(f"times must be positive, got {self.timeout_s:g} and {self.promote_s:g}", hint="seconds")


def needed_memory(manifest: Manifest, max_batch: int, in_flight: int) -> int:
    """Bytes that a pipeline needs which draws so many pictures at once, each in a slot of its own."""
    return estimate_memory(manifest, max_batch, in_flight).total


def most_in_flight(
    manifest: Manifest, device: torch.device, max_batch: int, asked: int | None, memory_limit: int | None = None
) -> int:
    """Number of pictures that may be in flight: as many as asked, or as are predicted to fit.

    Raises:
        CapacityError: the number asked for is predicted to need more memory than there is.
    """
    limit = available_memory(device) if memory_limit is None else memory_limit
    wanted = _BATCHES_IN_FLIGHT * max_batch if asked is None else asked

    def most(keeps_text_encoder: bool) -> int:
        def fits(n: int) -> bool:
            return estimate_memory(manifest, max_batch, n, keeps_text_encoder).total <= limit

        return next((n for n in range(wanted, 0, -1) if fits(n)), 0)

    # To open the text encoder for each request costs more than pictures in flight gain.
    fitting = most(keeps_text_encoder=True) or most(keeps_text_encoder=False)
    if asked is not None and fitting < asked:
        needed = estimate_memory(manifest, max_batch, asked)
        raise CapacityError(
            f"{asked} pictures in flight need up to {needed}; {limit / 2**30:.2f} GiB is allowed",
            hint=f"--max-in-flight {fitting} fits" if fitting else "use a larger machine or a smaller model",
        )
    return max(1, fitting)

"""Events of a request, in the order in which they happen; the scheduler publishes them, the front sends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ldp_runtime.pipeline.trace import ScaleTrace, Trace


@dataclass(frozen=True)
class ScaleDrawn:
    """A scale of one picture.

    Attributes:
        index: of the picture in its request.
        scales: number of scales that the picture takes.
        trace: counts and times of the scale.
    """

    index: int
    scales: int
    trace: ScaleTrace


@dataclass(frozen=True)
class Partial:
    """A partial image: the picture as it is after one of its scales.

    Attributes:
        number: of the partial image, from 0.
        image: PIL image of the picture's own size.
    """

    index: int
    number: int
    image: Any


@dataclass(frozen=True)
class Times:
    """Seconds of one picture: waiting, in the engines (waiting for others included), and in the decoder alone."""

    queued_s: float
    drawing_s: float
    decode_s: float


@dataclass(frozen=True)
class Drawn:
    """A finished picture, as a PIL image, with its trace."""

    index: int
    image: Any
    trace: Trace
    times: Times


@dataclass(frozen=True)
class Failed:
    """A picture that will not come; the others of its request do not change."""

    index: int
    error: Exception


Event = ScaleDrawn | Partial | Drawn | Failed

#: Receiver of events. It is called on the engine thread, and must neither block nor raise.
Publish = Callable[[Event], None]

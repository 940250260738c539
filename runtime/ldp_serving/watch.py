"""Watch: whoever counts what a scheduler and its front do; this one counts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.trace import Trace

from ldp_serving.errors import Refused
from ldp_serving.events import Times
from ldp_serving.waiting import Picture


class Watch:
    """Base of what counts. What the scheduler does is told on the engine thread, the rest on the front's."""

    def started(self, pictures: Sequence[Picture], waited_s: Sequence[float], text_s: float) -> None:
        """Pictures started together after waiting; encoding their texts took `text_s` seconds."""

    def stepped(self, event: ScaleEvent) -> None:
        """A scale was drawn."""

    def shown(self, picture: Picture, after_s: float) -> None:
        """A partial image was made, `after_s` seconds after the request arrived."""

    def finished(self, picture: Picture, image: Any, trace: Trace, times: Times) -> None:
        """A picture was drawn, as a PIL image."""

    def failed(self, picture: Picture, error: Exception) -> None:
        """A picture will not come."""

    def busy(self, seconds: float) -> None:
        """The engine worked for `seconds`."""

    def request(self, outcome: str, seconds: float) -> None:
        """A request ended: completed, refused, invalid, failed or cancelled."""

    def refused(self, error: Refused) -> None:
        """A request was refused or given up."""

    def encoded(self, kind: str, seconds: float) -> None:
        """A picture's file of this format was written."""

"""Flight: pictures that started together, and the drawing that draws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from ldp_runtime.pipeline.drawing import ScaleEvent
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pipeline.trace import ScaleTrace, Trace

from ldp_serving.waiting import Picture


class Flight:
    """Pictures of one schedule on their way; the first of them is drawn to its end before the next.

    Early scales, where all pictures share a call, are drawn for all of them at once.

    Raises:
        NonFiniteError, CapacityError: the text of a picture could not be encoded.
    """

    def __init__(self, pipeline: Pipeline, pictures: Sequence[Picture]) -> None:
        self._drawing = pipeline.start([picture.request for picture in pictures])
        self._all = tuple(pictures)
        self.pictures = list(pictures)
        self.is_shared = len(pictures) > 1
        self.text_s = self._drawing.text_s
        schedule = pictures[0].request.schedule
        self._early = min(schedule.detail_scales())
        self._next = dict.fromkeys(pictures, 0)

    @property
    def is_early(self) -> bool:
        """True while the next scale is one of those that cost little: none of the scales that hold most tokens."""
        return self._next[self.pictures[0]] < self._early

    def step(self) -> ScaleEvent | None:
        """Draws the next scale of the first picture that has memory, and of those that share its call.

        None: all pictures of this flight wait for memory that other flights hold.

        Raises:
            NonFiniteError, CapacityError: the step failed.
        """
        event = self._drawing.step(self._all.index(self.pictures[0]))
        return self._drawing.step() if event is None else event

    def seen(self, event: ScaleEvent) -> Iterator[tuple[Picture, ScaleTrace]]:
        """Pictures of an event with their traces; notes how far they are."""
        pairs = [(self._all[i], trace) for i, trace in zip(event.images, event.traces, strict=True)]
        for picture, trace in pairs:
            self._next[picture] = trace.scale + 1
        yield from pairs

    def latent(self, event: ScaleEvent, place: int) -> torch.Tensor:
        """Latent [d, H, W] of an event's picture.

        Raises:
            NonFiniteError: a call so far gave NaN or infinity.
        """
        return self._drawing.result(event.images[place])[0]

    def result(self, picture: Picture) -> tuple[torch.Tensor, Trace]:
        """Latent and trace of a picture that is drawn."""
        return self._drawing.result(self._all.index(picture))

    def leave(self, picture: Picture) -> None:
        """Takes a picture that is drawn off the list."""
        self.pictures.remove(picture)

    def cancel(self, picture: Picture) -> None:
        """Takes a picture out of the drawing; the others do not change."""
        self.pictures.remove(picture)
        self._drawing.cancel(self._all.index(picture))

    @property
    def is_second_try(self) -> bool:
        """True if a picture is drawn again, by itself: nothing may start beside it."""
        return any(picture.alone for picture in self.pictures)

    def close(self) -> None:
        """Gives the memory back."""
        self.pictures.clear()
        self._drawing.close()

"""Drawing of images of one size, step by step: what a call of the pipeline and a server take steps of."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from ldp_runtime.engines.blocks import Placement
from ldp_runtime.engines.cache_memory import CacheMemory
from ldp_runtime.errors import ClosedError, ConfigError
from ldp_runtime.families.base import Codec
from ldp_runtime.noise import CounterNoise
from ldp_runtime.pipeline.batch import ImageSettings, ImageState
from ldp_runtime.pipeline.open_engines import Engines
from ldp_runtime.pipeline.request import ImageRequest
from ldp_runtime.pipeline.run import Run
from ldp_runtime.pipeline.trace import ScaleTrace, Trace
from ldp_runtime.pruning.parse import policy_text
from ldp_runtime.schedule import ScaleSchedule


@dataclass(frozen=True)
class ScaleEvent:
    """Event that the callback sees after each scale of each engine call.

    Attributes:
        scale: index of the scale.
        scales: number of scales that will be run.
        images: indices in the request of the images in the call.
        traces: trace of this scale, one per image.
        latents: F_k of each image [d, H, W].
        residuals: R_k of each image on the token grid [channels, h, w], fills included.
    """

    scale: int
    scales: int
    images: tuple[int, ...]
    traces: tuple[ScaleTrace, ...]
    latents: tuple[torch.Tensor, ...]
    residuals: tuple[torch.Tensor, ...]
    _preview: Callable[[int], Any]

    def preview(self, index: int = 0) -> Any:
        """Decodes the image `images[index]` as it is after this scale, now, as a PIL image.

        Raises:
            NonFiniteError: the image holds NaN or infinity.
        """
        return self._preview(index)


@dataclass(frozen=True)
class ImageEvent:
    """Event that the callback sees once an image is finished, before the next ones are begun.

    Attributes:
        index: index of the image in the request.
        image: the image as the output type says: one element of `GenerationResult.images`.
        trace: its trace, with its seed.
    """

    index: int
    image: Any
    trace: Trace


#: Noise of an image for every scale, from its seed.
Noise = Callable[[int, Codec, ScaleSchedule], Sequence[torch.Tensor] | CounterNoise]


class Drawing:
    """Images of one size on their way. Modes and locks are entered for each step and left after it.

    Args:
        start: turns requests into their run, within a step's modes.
        entered: context of one step, which gives it the engines.
        decode: a PIL image of a latent [1, d, H, W].
        indices: of the images in the request that they belong to.

    Attributes:
        text_s: seconds that the texts and the noise took.
    """

    def __init__(
        self,
        images: Sequence[ImageRequest],
        start: Callable[[Engines, Sequence[ImageRequest]], tuple[Run, list[ImageState]]],
        entered: Callable[[], AbstractContextManager[Engines]],
        decode: Callable[[torch.Tensor], Any],
        indices: Sequence[int] | None = None,
    ) -> None:
        self.images = tuple(images)
        self.indices = tuple(range(len(images)) if indices is None else indices)
        self._entered, self._decode = entered, decode
        started = time.perf_counter()
        with entered() as engines:
            run, self._states = start(engines, self.images)
        self._run: Run | None = run
        self.text_s = time.perf_counter() - started

    @property
    def is_done(self) -> bool:
        """True once every image is drawn, cancelled, or given up."""
        return self._run is None or self._run.is_done

    def step(self, index: int | None = None) -> ScaleEvent | None:
        """Draws one scale of one group of images, and says which.

        Images share early calls, and go on in slots of memory, as many at a time as are free. None: nothing was drawn,
        since all that is left waits for memory that other drawings hold. It is there again when they are stepped on.

        Args:
            index: in the request, of an image that is not drawn yet; its group is taken. None: that furthest behind.

        Raises:
            NonFiniteError, CapacityError: the step failed; the drawing is closed.
            ClosedError: nothing is left to draw.
            ConfigError: the drawing has no such image, or it is drawn or cancelled already.
        """
        run = self._run
        if run is None or run.is_done:
            raise ClosedError("nothing of this drawing is left to draw", hint="start another: Pipeline.start(...)")
        image = None if index is None else self._state(index)
        if image is not None and not run.holds(image):
            raise ConfigError(f"image {index} is drawn or cancelled already", hint="step those that are left")
        try:
            with self._entered():
                drawn = run.step(image)
                if not drawn:
                    return None
                if run.is_done:
                    run.finish()
        except BaseException:
            self._fail()
            raise
        return self._event(drawn)

    def cancel(self, index: int) -> None:
        """Takes out the image of this index in the request; the others do not change.

        Raises:
            ConfigError: the drawing has no such image.
        """
        image = self._state(index)
        if self._run is not None:
            self._run.cancel(image)

    def results(self) -> list[tuple[torch.Tensor, Trace]]:
        """Latent [d, H, W] and trace of each image, once all are drawn.

        Raises:
            ConfigError: images are still on their way.
        """
        if not self.is_done:
            raise ConfigError("images of this drawing are still on their way", hint="step it until `is_done`")
        return [(state.latent, self._trace(state)) for state in self._states]

    def result(self, index: int) -> tuple[torch.Tensor, Trace]:
        """Latent [d, H, W] and trace of a drawn image, by its index in the request; others may still be on their way.

        Raises:
            NonFiniteError: a call so far gave NaN or infinity.
            ConfigError: the drawing has no such image.
        """
        state = self._state(index)
        if self._run is not None:
            self._run.check()
        return state.latent, self._trace(state)

    def close(self) -> None:
        """Gives the memory of the run back, whether it is done or not."""
        run, self._run = self._run, None
        if run is not None:
            run.close()

    def _state(self, index: int) -> ImageState:
        if index not in self.indices:
            raise ConfigError(f"the drawing has no image {index!r}", hint=f"its images are {list(self.indices)}")
        return self._states[self.indices.index(index)]

    def _fail(self) -> None:
        """Ends a run that failed; NaN can make later work fail in many ways, none of which would name the cause."""
        run, self._run = self._run, None
        if run is not None:
            run.close()
            run.check()

    def _trace(self, state: ImageState) -> Trace:
        schedule = state.schedule
        words = policy_text(state.settings.policy)
        return Trace(state.seed, words, tuple(state.trace), len(schedule), schedule.total_tokens, self.text_s)

    def _event(self, drawn: Sequence[ImageState]) -> ScaleEvent:
        latents = tuple(image.latent for image in drawn)
        return ScaleEvent(
            scale=drawn[0].trace[-1].scale,
            scales=max(image.scales for image in drawn),
            images=tuple(self.indices[self._states.index(image)] for image in drawn),
            traces=tuple(image.trace[-1] for image in drawn),
            latents=latents,
            residuals=tuple(image.residual for image in drawn),
            _preview=lambda i: self._previewed(latents[i]),
        )

    def _previewed(self, latent: torch.Tensor) -> Any:
        if self._run is not None:
            self._run.check()  # on a GPU, logits are looked at when somebody asks
        return self._decode(latent[None])


def start_run(
    engines: Engines,
    images: Sequence[ImageRequest],
    rows: Callable[[Sequence[ImageRequest]], Any],
    noise: Noise,
    placement: Placement,
    quantized: Mapping[int, str],
    alone: Collection[int],
    memory: CacheMemory | None,
) -> tuple[Run, list[ImageState]]:
    """Run of these requests, and its images in their order.

    Args:
        rows: the prompt's rows of the images; see `condition_rows`.
        memory: memory of the caches, which drawings of a pipeline share; None: the run has its own.
    """
    device = engines.blocks.device
    states = []
    for image in images:
        settings = ImageSettings(
            _codec(engines, image),
            image.guidance,
            image.temperature,
            image.filter,
            image.policy,
            image.ended_temperature,
            image.guidance_end,
        )
        drawn = noise(image.seed, settings.codec, image.schedule)
        states.append(ImageState.new(settings, image.schedule, image.seed, drawn, device))
    return Run(engines.blocks, placement, states, rows(images), quantized, memory, engines.residual, alone), states


def _codec(engines: Engines, image: ImageRequest) -> Codec:
    return engines.codec.mixing() if image.more_smooth else engines.codec

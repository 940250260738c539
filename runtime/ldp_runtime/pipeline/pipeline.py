"""Pipeline for services to embed: load a bundle once, then call it with prompts, from any thread."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ldp_runtime.arguments import check_callable, listed, shown, truth, whole_number
from ldp_runtime.bundle.files import TOKENIZER, Bundle, Integrity, open_bundle, require_digest
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.saved_policies import resolve_policy
from ldp_runtime.engines.cache_memory import CacheMemory
from ldp_runtime.engines.out_of_memory import capacity_errors
from ldp_runtime.errors import Cancelled, CapacityError, ClosedError, ConfigError, ForkedError, IncompatibleBundleError
from ldp_runtime.families.base import Codec
from ldp_runtime.families.choose import placement
from ldp_runtime.noise import CounterNoise
from ldp_runtime.numerics import check_finite
from ldp_runtime.pipeline.batch import ImageState
from ldp_runtime.pipeline.conditions import condition_rows
from ldp_runtime.pipeline.drawing import Drawing, ImageEvent, ScaleEvent, start_run
from ldp_runtime.pipeline.memory import cache_plan, check_capacity, check_rows, checked_memory
from ldp_runtime.pipeline.noise_ahead import NoiseAhead
from ldp_runtime.pipeline.open_engines import Engines, check_runnable, checked_threads, device_of, open_engines
from ldp_runtime.pipeline.request import MAX_IMAGES, ImageRequest, Request, check_output_type, make_request
from ldp_runtime.pipeline.run import Run
from ldp_runtime.pipeline.trace import Trace
from ldp_runtime.pixels import to_output
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from ldp_runtime.engines.graph_cache import GraphCounters


logger = logging.getLogger(__name__)


#: Most draws of `warmup`: the first launches kernels, the second captures graphs; the third replays them, or captures
#: those whose memory has moved meanwhile.
_WARM_UP_DRAWS = 5


#: Upper end of what `load` may allow as images of a request.
_MOST_IMAGES = 1 << 20


#: Condition that an image is drawn from: a text, or a class label.
Condition = str | int


#: Callback after each scale; if it returns False, the run stops and raises `Cancelled`.
ScaleCallback = Callable[[ScaleEvent], bool | None]


#: Callback after each image; if it returns False, the call stops and raises `Cancelled`.
ImageCallback = Callable[[ImageEvent], bool | None]


_LATENTS_HINT = 'pass them as output_type="latent" returns them'


@dataclass(frozen=True)
class GenerationResult:
    """Images in the order of the request, prompt by prompt, with the seed and trace of each.

    Attributes:
        images: a list of PIL images ("pil"). An array [B, H, W, 3] ("numpy") or a tensor [B, 3, H, W] ("torch"),
            float32 in [0, 1]. Or latents [B, d, h, w] ("latent").
        seeds: seed of each image.
        traces: trace of each image.
    """

    images: Any
    seeds: tuple[int, ...]
    traces: tuple[Trace, ...]


class Pipeline:
    """Engines and the loop that drives them. Calls from several threads queue; a failed call does not affect others."""

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        tokenizer: PromptTokenizer | None,
        max_batch: int,
        root: Path | None = None,
        max_images: int = MAX_IMAGES,
        slots: int | None = None,
    ) -> None:
        self.manifest = manifest
        self.root = root  # where the bundle's saved policies lie
        self.max_batch = max_batch
        self.max_images = max_images
        self._engines: Engines | None = engines
        self._process = os.getpid()
        self._tokenizer = tokenizer
        plan = cache_plan(manifest, engines.blocks.shape, max_batch, slots)
        self._memory = CacheMemory(plan, engines.blocks.device)
        self._placement = lru_cache(maxsize=4)(partial(placement, manifest.model, engines.constants))  # by schedule
        self._calls = threading.RLock()  # whole calls queue; reentrant: a callback may draw too
        self._in_call = False
        self._lock = threading.RLock()  # of the engines, for one step
        on_gpu = engines.blocks.device.type == "cuda"
        self._drawer = ThreadPoolExecutor(1, "ldp-noise") if on_gpu else None

    @classmethod
    def load(
        cls,
        bundle: Path | str | Bundle,
        *,
        device: str | torch.device = "cpu",
        threads: int | None = None,
        max_batch: int = 4,
        slots: int | None = None,
        memory_limit: int | None = None,
        integrity: Integrity = "full",
        expected_digest: str | None = None,
        allow_rejected: bool = False,
        max_images: int = MAX_IMAGES,
        quote_prompts: bool = True,
    ) -> Pipeline:
        """Opens a bundle.

        Args:
            device: "cpu" or "cuda". A GPU runs TensorRT bundles, those that PyTorch built on a GPU, and ONNX ones if
                ONNX Runtime has its CUDA provider. PyTorch compiles blocks now, and keeps them for the next process.
            threads: number of threads of a CPU engine; None: the physical cores that this process may use.
            max_batch: number of images drawn together; longer requests are drawn in several batches.
            slots: number of images that may have passed the early scales at one time, which bounds memory; None: as
                `max_batch`. A batch of more images shares its early scales, and then draws so many at a time.
            memory_limit: bytes that the pipeline may need; None: the free memory of the device, or of the container.
                If not everything fits, the text encoder is opened for each call and leaves memory before the first
                scale; the log says so.
            integrity: "full" hashes every file of the bundle, "sizes" compares sizes only.
            expected_digest: digest of the only bundle to load, or its first 16 digits or more; `inspect` prints it.
            allow_rejected: load the bundle even if its verification failed.
            max_images: most images of one request, which protects a service from a single call.
            quote_prompts: warnings in the log may quote prompts, such as of words that the model does not know.

        Raises:
            ConfigError: there is no bundle, or an option is out of range.
            IntegrityError, IncompatibleBundleError: see `open_bundle` and `check_runnable`.
            CapacityError: the bundle is predicted to need more memory than allowed; nothing was allocated.
        """
        max_batch = whole_number("max_batch", max_batch, 1, _MOST_IMAGES)
        max_images = whole_number("max_images", max_images, 1, _MOST_IMAGES)
        allow_rejected = truth("allow_rejected", allow_rejected)
        quote_prompts = truth("quote_prompts", quote_prompts)
        if slots is not None:
            slots = whole_number("slots", slots, 1, _MOST_IMAGES, hint="leave it out for one per image of max_batch")
        threads = checked_threads(threads)
        memory_limit = checked_memory(memory_limit)
        opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, integrity, expected_digest)
        require_digest(opened.manifest, opened.folder, expected_digest)
        check_rows(opened.manifest, max_batch)
        _check_state(opened, allow_rejected)
        target = device_of(device)
        check_runnable(opened.manifest, target)
        estimate = check_capacity(opened.manifest, max_batch, target, memory_limit, slots)
        logger.info("loading %s, needs up to %s", opened.manifest.model.name, estimate)
        with capacity_errors("loading the engines"):
            engines = open_engines(opened, target, threads, keeps_text_encoder=estimate.keeps_text_encoder)
        manifest, tokenizer = opened.manifest, None
        if manifest.has_text_encoder:
            padded = manifest.model.fixed_text_tokens > 0
            tokenizer = PromptTokenizer(opened.path(TOKENIZER), manifest.limits.text_tokens, quote_prompts, padded)
        return cls(manifest, engines, tokenizer, max_batch, opened.root, max_images, slots)

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        class_labels: int | Sequence[int] | None = None,
        prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        negative_prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
        pooled_prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
        negative_pooled_prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
        prompt_attention_mask: torch.Tensor | Sequence[torch.Tensor] | None = None,
        negative_prompt_attention_mask: torch.Tensor | Sequence[torch.Tensor] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        temperature: float | Sequence[float] | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        policy: Policy | str | None = None,
        aspect_ratio: float | Sequence[float] | None = None,
        height: int | Sequence[int] | None = None,
        width: int | Sequence[int] | None = None,
        output_type: str = "pil",
        cfg_insertion_layer: Sequence[int] = (0,),
        more_smooth: bool | None = None,
        callback_on_scale: ScaleCallback | None = None,
        callback_on_image: ImageCallback | None = None,
    ) -> GenerationResult:
        """Draws images.

        Args:
            prompt: a text or several.
            prompt_embeds: text features [T, text_channels] of each prompt, instead of `prompt`.
            class_labels: a class label or several, instead of prompts, for class-conditional models (VAR).
            negative_prompt: text to steer away from, one for all or one each; None uses the learned unconditional text.
            negative_prompt_embeds: text features of the negative prompts, instead of `negative_prompt`.
            pooled_prompt_embeds, negative_pooled_prompt_embeds: Switti only: pooled vectors [pooled_channels] of the
                features; None takes them from the last token, as its text encoder does.
            prompt_attention_mask, negative_prompt_attention_mask: HART only, whose features have the rows of padding:
                True or 1 at tokens [T]; None: all rows are tokens.
            guidance_scale: one weight per scale (1 means no guidance), or one number g. For Infinity, g is the weight
                of every scale. For VAR, Switti and HART it sets the originals' ramp: scale k of S has
                1 + g k / (S - 1). Switti's ends at the scale that its bundle names, HART's last two weights are equal.
            temperature: temperature of the logits, one number or one per scale. Switti's number is that of the scales
                after guidance has ended.
            top_k: for bits, 1 draws the likeliest and any other number is off; for codes, the k likeliest can be drawn.
            top_p: bits of probability <= 1 - top_p cannot be drawn, nor the least likely codes that together have no
                more than that. 0 is off.
            num_images_per_prompt: number of images per prompt or class label.
            seed: seed of the first image (`seed + i` for the others), or one per image; None draws seeds and reports
                them.
            policy: a policy; its text ("ld", "ld:rho=0.4"); the name of a saved policy; "none" for the full model; or
                None for the bundle's default.
            aspect_ratio: height / width; the nearest that the bundle draws is taken.
            height, width: size in pixels, instead of `aspect_ratio`. A size close to one that the bundle draws gives a
                warning that says what is drawn.
            output_type: "pil", "numpy", "torch" or "latent".
            cfg_insertion_layer: position where guidance is mixed; engines do so at the logits, so only [0] is allowed.
            more_smooth: VAR, Switti and HART: draw mixtures of codebook entries, as the originals' option of that
                name; None does what the model's recommended settings do.
            callback_on_scale: function that sees a `ScaleEvent` after each scale; it returns False to stop.
            callback_on_image: function that sees an `ImageEvent` once an image is finished. Images of a request that
                takes several batches come while later ones are not yet begun. It returns False to stop.

        Raises:
            ConfigError: the request cannot be served; no work was done.
            Cancelled: a callback stopped the run.
            NonFiniteError: an engine gave NaN or infinity; the message names the graph and the scale.
            CapacityError: memory ran out during the run.

        The pipeline can be used again after any of these errors.
        """
        self._check_process()
        for name, value in (("callback_on_scale", callback_on_scale), ("callback_on_image", callback_on_image)):
            check_callable(name, value)
        request = make_request(
            self.manifest,
            prompt=prompt,
            class_labels=class_labels,
            prompt_embeds=prompt_embeds,
            negative_prompt=negative_prompt,
            negative_prompt_embeds=negative_prompt_embeds,
            pooled_prompt_embeds=pooled_prompt_embeds,
            negative_pooled_prompt_embeds=negative_pooled_prompt_embeds,
            prompt_attention_mask=prompt_attention_mask,
            negative_prompt_attention_mask=negative_prompt_attention_mask,
            guidance_scale=guidance_scale,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            num_images_per_prompt=num_images_per_prompt,
            seed=seed,
            policy=self._policy(policy),
            aspect_ratio=aspect_ratio,
            height=height,
            width=width,
            output_type=output_type,
            cfg_insertion_layer=cfg_insertion_layer,
            more_smooth=more_smooth,
            max_images=self.max_images,
        )
        with self._calls:  # calls of other threads wait; between the steps of this one, they may decode
            # A call within a callback cannot wait for the images of the call around it: it brings memory of its own.
            outer, self._in_call = self._in_call, True
            try:
                drawn = self._draw(request, callback_on_scale, callback_on_image, None if outer else self._memory)
            finally:
                self._in_call = outer
            return self._result(request, drawn)

    def _policy(self, policy: Policy | str | None) -> Policy | None:
        """Policy of a request; the bundle's default if it names none."""
        return resolve_policy(self.manifest.defaults.policy if policy is None else policy, self.root, self.manifest)

    def start(self, images: Sequence[ImageRequest], indices: Sequence[int] | None = None) -> Drawing:
        """Begins images of one size, to be drawn step by step; steps of several drawings may be taken in turn.

        Images share early calls, whatever their other settings, and none of them depends on the others.

        Args:
            images: checked requests of one schedule, at most `max_batch`; see `make_request`.
            indices: of the images in the request that they belong to, for events.

        Raises:
            ConfigError: no images, too many, or of several schedules.
            NonFiniteError, CapacityError: the text could not be encoded.
        """
        self._check_process()
        images = listed("images", images, self.max_images)
        if not all(isinstance(image, ImageRequest) for image in images):
            raise ConfigError(f"images must be checked requests, got {shown(images)}", hint="see make_request")
        if not 0 < len(images) <= self.max_batch or len({image.schedule for image in images}) > 1:
            raise ConfigError(
                f"a drawing takes 1 to {self.max_batch} images of one size, got {len(images)}",
                hint="start one drawing for each size, or load with a larger max_batch",
            )
        if indices is not None:
            indices = [whole_number("index of an image", i, 0, 2**63) for i in listed("indices", indices, len(images))]
            if len(set(indices)) != len(images):
                raise ConfigError(f"{len(images)} images have the indices {indices}", hint="give one each, or none")
        return self._begin(images, indices, self._memory)

    def _begin(
        self, images: Sequence[ImageRequest], indices: Sequence[int] | None, memory: CacheMemory | None
    ) -> Drawing:
        start, doing = partial(self._start, memory=memory), f"drawing {len(images)} images"
        return Drawing(images, start, lambda: self._running(doing), self._preview, indices)

    def _draw(
        self,
        request: Request,
        on_scale: ScaleCallback | None,
        on_image: ImageCallback | None,
        memory: CacheMemory | None,
    ) -> list[tuple[Any, Trace]]:
        """Output and trace of each image; images of one size are drawn together, `max_batch` at a time."""
        images, drawn = request.images, {}
        for schedule in dict.fromkeys(image.schedule for image in images):
            same = [i for i, image in enumerate(images) if image.schedule == schedule]
            for first in range(0, len(same), self.max_batch):
                part = same[first : first + self.max_batch]
                for i, latent, trace in self._latents([images[i] for i in part], part, on_scale, memory):
                    drawn[i] = self._finished(latent, trace, request)
                    _tell_image(on_image, i, *drawn[i])
        return [drawn[i] for i in range(len(images))]

    def _latents(
        self,
        images: Sequence[ImageRequest],
        indices: Sequence[int],
        on_scale: ScaleCallback | None,
        memory: CacheMemory | None,
    ) -> list[tuple[int, torch.Tensor, Trace]]:
        """Index, latent [d, h, w] and trace of each image of one drawing."""
        drawing = self._begin(images, indices, memory)
        try:
            while not drawing.is_done:
                _tell(on_scale, _drawn(drawing.step()))
            return [(i, *result) for i, result in zip(indices, drawing.results(), strict=True)]
        finally:
            drawing.close()

    def _finished(self, latent: torch.Tensor, trace: Trace, request: Request) -> tuple[Any, Trace]:
        """One image as the output type says, and its trace."""
        if request.output_type == "latent":
            return latent, trace
        with self._running(f"drawing {len(request.images)} images") as engines:
            (pixels,), (seconds,) = self._decode(engines, [latent])
            return to_output(pixels, request.output_type)[0], replace(trace, decode_s=seconds)

    def _result(self, request: Request, drawn: Sequence[tuple[Any, Trace]]) -> GenerationResult:
        images, traces = [image for image, _ in drawn], tuple(trace for _, trace in drawn)
        seeds = tuple(image.seed for image in request.images)
        if request.output_type == "pil":
            return GenerationResult(images, seeds, traces)
        with self._running(f"joining {len(drawn)} images"):
            joined = np.stack(images) if request.output_type == "numpy" else torch.stack(images)
        return GenerationResult(joined, seeds, traces)

    def decode(self, latents: torch.Tensor, output_type: str = "pil") -> Any:
        """Images of latents [B, d, h, w], such as `output_type="latent"` gives; output types as in `__call__`.

        Raises:
            ConfigError: the latents are empty or of another model, or there is no such output type.
            NonFiniteError: the decoder gave NaN or infinity.
            CapacityError: memory ran out.
        """
        self._check_process()
        check_output_type(output_type)
        self._check_latents(latents)
        if output_type == "latent":
            return latents
        with self._running(f"decoding {len(latents)} images") as engines:
            pixels, _ = self._decode(engines, latents.to(engines.decoder.device, torch.float32).unbind())
            return to_output(torch.cat(pixels), output_type)

    def _check_latents(self, latents: object) -> None:
        """Raises ConfigError for what are no latents of this model's sizes."""
        channels, schedules = self.manifest.model.latent_channels, self.manifest.schedules()
        if not isinstance(latents, torch.Tensor) or latents.layout != torch.strided or latents.is_meta:
            raise ConfigError(f"latents must be a dense tensor, got {shown(latents)}", hint=_LATENTS_HINT)
        if latents.dim() != 4 or latents.shape[1] != channels or not latents.numel():
            raise ConfigError(
                f"latents must be [images, {channels}, height, width] and not empty, got {list(latents.shape)}",
                hint=_LATENTS_HINT,
            )
        if not latents.is_floating_point():
            raise ConfigError(f"latents must be floats, got {latents.dtype}", hint=_LATENTS_HINT)
        side = self.manifest.model.pixels_per_token // self.manifest.model.vae_stride
        most = max(schedule.tokens[-1] for schedule in schedules) * side**2
        if len(latents) > self.max_images or latents[0, 0].numel() > most:
            raise ConfigError(
                f"latents of at most {self.max_images} images of {most} positions are decoded, got "
                f"{list(latents.shape)}",
                hint="decode fewer at once, or load the bundle with a larger max_images",
            )

    def text_tokens(self, prompt: str) -> int:
        """Number of tokens of a prompt as the model reads it, its end included; 0 if the bundle encodes no text."""
        return 0 if self._tokenizer is None else len(self._tokenizer.ids(prompt))

    def draw(self, conditions: Condition | Sequence[Condition], **options: Any) -> GenerationResult:
        """Calls the pipeline, for tools that serve every family: texts are prompts, whole numbers are class labels."""
        single = isinstance(conditions, str | int)
        given: Any = [conditions] if single else listed("conditions", conditions, self.max_images)
        if given and all(isinstance(condition, int) for condition in given):
            return self(class_labels=given, **options)
        return self(given, **options)

    def warmup(self, batch: int = 1) -> None:
        """Draws images of the bundle's square size and discards them: memory and kernels are then as in service.

        A repeated call may be captured as a CUDA graph. If the backend does so, draws until no new graph is captured.
        """
        self._check_process()
        batch = whole_number("batch", batch, 1, self.max_images)
        captured: list[int] = []
        for _ in range(_WARM_UP_DRAWS):
            self._draw_anything(batch)
            if self.cuda_graphs is None:
                return
            captured.append(self.cuda_graphs.captures)
            if len(captured) > 2 and captured[-1] == captured[-2]:
                return

    def _draw_anything(self, batch: int) -> None:
        if not self.manifest.model.reads_text:
            self(class_labels=[0] * batch, seed=0, output_type="torch")
        elif self.manifest.has_text_encoder:
            self(["a picture"] * batch, seed=0, output_type="torch")
        else:
            shape = self.manifest.model.given_features(min(8, self.manifest.limits.text_tokens))
            features = torch.ones(shape, dtype=torch.float32, device="cpu")
            self(prompt_embeds=[features] * batch, negative_prompt_embeds=features, seed=0, output_type="torch")

    def close(self) -> None:
        """Releases the engines' memory, once a running call has ended; a forked child only forgets them."""
        if os.getpid() != self._process:
            self._engines = None
            return
        with self._calls, self._lock:
            engines, self._engines = self._engines, None
            if self._drawer is not None:
                self._drawer.shutdown(cancel_futures=True)
            self._placement.cache_clear()
            self._memory.clear()
            if engines is not None:
                engines.close()

    @property
    def cuda_graphs(self) -> GraphCounters | None:
        """Counts of captured and replayed CUDA graphs so far; None if the backend does not count them."""
        return self._open_engines().cuda_graphs

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_engines(self) -> Engines:
        self._check_process()
        if self._engines is None:
            raise ClosedError("this pipeline is closed", hint="load the bundle again")
        return self._engines

    def _check_process(self) -> None:
        """Raises ForkedError in a child of the process that loaded the bundle, before a lock is asked for."""
        if os.getpid() != self._process:
            raise ForkedError(
                f"this pipeline was loaded by the process {self._process}, of which this one is a fork",
                hint="load after fork: in each worker, not in the process that starts them",
            )

    @contextmanager
    def _running(self, doing: str) -> Generator[Engines]:
        """Gives the engines to one thread at a time, in modes of PyTorch that no caller sets."""
        self._check_process()
        with self._lock:
            engines = self._open_engines()
            # Engines keep tensors between calls; a caller's inference mode would turn them into inference tensors.
            lasting = torch.inference_mode(False), torch.no_grad()
            device = engines.blocks.device
            exact = torch.autocast(device.type, enabled=False)  # and its lower precision would change the picture
            with lasting[0], lasting[1], exact, _one_torch_thread(device), capacity_errors(doing):
                yield engines

    def _start(
        self, engines: Engines, images: Sequence[ImageRequest], memory: CacheMemory | None
    ) -> tuple[Run, list[ImageState]]:
        rows = partial(condition_rows, engines, self.manifest, self._tokenizer)
        schedule = images[0].schedule
        sets, alone = self.manifest.scale_sets(schedule), self.manifest.scales_alone(schedule)
        noise = partial(self._noise, engines.blocks.device)
        return start_run(engines, images, rows, noise, self._placement(schedule), sets, alone, memory)

    def _noise(
        self, device: torch.device, seed: int, codec: Codec, schedule: ScaleSchedule
    ) -> Sequence[torch.Tensor] | CounterNoise:
        """Noise of an image; if a GPU computes, another thread draws that of a generator meanwhile."""
        if self.manifest.noise == "counter":
            variates = tuple(codec.variates(k, len(schedule)) for k in range(len(schedule)))
            return CounterNoise(seed, schedule.tokens, device, variates, codec.of_uniforms)
        if self._drawer is None:
            return codec.noise(seed, schedule)
        return NoiseAhead(seed, codec, schedule, device, self._drawer)

    def _preview(self, latent: torch.Tensor) -> Any:
        return self.decode(latent)[0]

    def _decode(self, engines: Engines, latents: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[float]]:
        """Images [1, 3, H, W] in [-1, 1] of latents [d, h, w], and the seconds that each of them took."""
        stride, images, seconds = self.manifest.model.vae_stride, [], []
        for latent in latents:
            started = time.perf_counter()
            _, h, w = latent.shape
            image = latent.new_empty(1, 3, h * stride, w * stride)
            engines.decoder.run({"latent": latent[None].contiguous()}, {"image": image})
            check_finite("decoder", image)
            images.append(image)
            seconds.append(time.perf_counter() - started)
        return images, seconds


def _drawn(event: ScaleEvent | None) -> ScaleEvent:
    """Raises CapacityError if a step of a call drew nothing: only drawings that the caller holds can change that."""
    if event is None:
        raise CapacityError(
            "all memory for images is held by drawings that were begun with `start`",
            hint="step them to their end or close them first, or load with more slots",
        )
    return event


def _tell(callback: ScaleCallback | None, event: ScaleEvent) -> None:
    """Shows an event to the caller, in the caller's own modes.

    Raises:
        Cancelled: the callback says so.
    """
    if callback is not None and callback(event) is False:
        raise Cancelled(f"stopped by the callback after scale {event.scale} of {event.scales}")


def _tell_image(callback: ImageCallback | None, index: int, image: Any, trace: Trace) -> None:
    """Shows a finished image to the caller.

    Raises:
        Cancelled: the callback says so.
    """
    if callback is not None and callback(ImageEvent(index, image, trace)) is False:
        raise Cancelled(f"stopped by the callback after image {index}")


@contextmanager
def _one_torch_thread(device: torch.device) -> Generator[None]:
    """Keeps PyTorch's work between CPU engine calls on the calling thread.

    That work is far too small for a thread team, which would wait for cores that the engines or another process hold.
    The number of threads is a setting of the calling thread, so other threads keep theirs. A thread that uses PyTorch
    for the first time meanwhile begins with one.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_state(bundle: Bundle, allow_rejected: bool) -> None:
    verify = f"ldp-export verify '{bundle.root or bundle.folder}'"
    if bundle.state == "rejected" and not allow_rejected:
        raise IncompatibleBundleError(
            f"the bundle {bundle.folder} failed verification, or the report of it is damaged",
            hint=f"see {verify}; allow_rejected=True loads it anyway",
        )
    if bundle.state != "verified":
        logger.warning("the bundle %s is %s; run: %s", bundle.folder, bundle.state, verify)

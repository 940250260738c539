"""Request of a caller, checked before any work is done."""

from __future__ import annotations

import logging
import operator
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, get_args

import torch

from ldp_runtime.architecture.choose import ModelEntry
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.sizes import sizes
from ldp_runtime.errors import ConfigError
from ldp_runtime.families.choose import guidance_weights
from ldp_runtime.guidance import last_guided_scale, per_scale
from ldp_runtime.numerics import all_finite
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule

logger = logging.getLogger(__name__)


OutputType = Literal["pil", "numpy", "torch", "latent"]


#: A prompt in words, or its text features [T, text_channels].
Text = str | torch.Tensor


_SEED_BITS = 63


#: Share of a requested side by which the drawn side may differ from it.
_SIZE_TOLERANCE = 0.125


@dataclass(frozen=True)
class ImageRequest:
    """One image of a request.

    Attributes:
        condition: text or class label that it is drawn from.
        negative: text that guidance steers away from; None: the unconditional condition that the model learned.
        seed: seed of its noise.
        schedule: its size.
        guidance: weight of the conditional branch at each scale.
        temperature: of the logits, one number per scale.
        filter: top-k and top-p.
        policy: what is pruned of it.
        more_smooth: VAR only: draw mixtures of codebook entries.
    """

    condition: Text | int
    negative: Text | None
    seed: int
    schedule: ScaleSchedule
    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    filter: SamplingFilter
    policy: Policy
    more_smooth: bool = False

    @property
    def is_guided(self) -> bool:
        """True if any scale has guidance."""
        return last_guided_scale(self.guidance) >= 0


@dataclass(frozen=True)
class Request:
    """A checked request: images in order."""

    images: tuple[ImageRequest, ...]
    output_type: OutputType


def make_request(
    manifest: Manifest,
    *,
    prompt: str | Sequence[str] | None,
    class_labels: int | Sequence[int] | None,
    prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None,
    negative_prompt: str | Sequence[str] | None,
    negative_prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None,
    guidance_scale: float | Sequence[float] | None,
    temperature: float | Sequence[float] | None,
    top_k: int | None,
    top_p: float | None,
    num_images_per_prompt: int,
    seed: int | Sequence[int] | None,
    policy: Policy | None,
    aspect_ratio: float | Sequence[float] | None,
    height: int | Sequence[int] | None,
    width: int | Sequence[int] | None,
    output_type: str,
    cfg_insertion_layer: Sequence[int],
    more_smooth: bool,
) -> Request:
    """Checks the arguments of `Pipeline.__call__` and fills in the bundle's defaults.

    Raises:
        ConfigError: the request cannot be served.
    """
    if tuple(cfg_insertion_layer) != (0,):
        raise ConfigError(
            f"engines mix guidance at the logits only, not at cfg_insertion_layer {list(cfg_insertion_layer)}",
            hint="leave it at [0]; guidance inside the blocks exists in ldp_export.reference.infinity",
        )
    _check_numbers(Integral, num_images_per_prompt=num_images_per_prompt, top_k=top_k)
    _check_numbers(Real, top_p=top_p)
    if more_smooth and not manifest.model.mixes_codes:
        raise ConfigError(f"more_smooth mixes codebook entries; {manifest.model.name} draws bits", hint="leave it out")
    texts = {"prompt": prompt, "prompt_embeds": prompt_embeds}
    texts |= {"negative_prompt": negative_prompt, "negative_prompt_embeds": negative_prompt_embeds}
    if manifest.model.reads_text:
        conditions, negatives = _prompts(manifest, class_labels, texts)
    else:
        conditions, negatives = _labels(manifest.model, class_labels, texts), None
    if num_images_per_prompt < 1:
        raise ConfigError(
            f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}",
            hint="leave it out for one image a prompt",
        )
    count = len(conditions) * num_images_per_prompt
    schedules = _schedules(manifest, count, aspect_ratio, height, width)
    settings = {
        schedule: _settings(manifest, schedule, guidance_scale, temperature, top_k, top_p, policy or Policy())
        for schedule in dict.fromkeys(schedules)
    }
    check_output_type(output_type)
    if len(settings) > 1 and output_type != "pil":
        raise ConfigError(
            f"images of {len(settings)} sizes make no array", hint='ask for output_type="pil", or for one size a call'
        )
    seeds = _seeds(seed, count)
    images = []
    for i in range(count):
        index = i // num_images_per_prompt
        negative = None if negatives is None else negatives[index if len(negatives) > 1 else 0]
        own = settings[schedules[i]]
        images.append(ImageRequest(conditions[index], negative, seeds[i], schedules[i], *own, more_smooth=more_smooth))
    return Request(tuple(images), output_type)  # pyright: ignore[reportArgumentType]


def _settings(
    manifest: Manifest,
    schedule: ScaleSchedule,
    guidance_scale: float | Sequence[float] | None,
    temperature: float | Sequence[float] | None,
    top_k: int | None,
    top_p: float | None,
    policy: Policy,
) -> tuple[tuple[float, ...], tuple[float, ...], SamplingFilter, Policy]:
    """Guidance, temperature, filter and policy of images of one size, with the bundle's defaults filled in."""
    defaults, S = manifest.defaults, len(schedule)
    temperatures = per_scale(defaults.temperature if temperature is None else temperature, S, "temperature")
    if any(t <= 0 for t in temperatures):
        raise ConfigError(f"temperature must be positive, got {temperatures}", hint="top_k=1 draws the likeliest bits")
    policy.check(schedule)
    _check_cache(manifest, schedule, policy)
    weights = guidance_weights(manifest.model, defaults.guidance if guidance_scale is None else guidance_scale, S)
    rule = SamplingFilter(defaults.top_k if top_k is None else top_k, defaults.top_p if top_p is None else top_p)
    return weights, temperatures, rule, policy


def _check_numbers(kind: type[Real], **given: object) -> None:
    """Raises ConfigError for an argument that is not None and not a number of this kind."""
    for name, value in given.items():
        if value is not None and not isinstance(value, kind):
            raise ConfigError(
                f"{name} must be a {'whole ' if kind is Integral else ''}number, got {value!r}",
                hint=f"leave {name} out for its default",
            )


def _labels(model: ModelEntry, labels: int | Sequence[int] | None, texts: Mapping[str, object]) -> list[int]:
    """Class labels of a class-conditional model."""
    names = [name for name, value in texts.items() if value is not None]
    if names:
        raise ConfigError(
            f"{model.name} draws classes and reads no text, but {names[0]} was given",
            hint=f"pass class_labels (0 to {model.classes - 1})",
        )
    if labels is None:
        raise ConfigError(f"{model.name} needs class_labels", hint=f"numbers from 0 to {model.classes - 1}")
    try:
        checked = [operator.index(label) for label in (labels if isinstance(labels, Iterable) else [labels])]
    except TypeError as error:
        raise ConfigError(
            f"class labels must be whole numbers, got {labels!r}", hint="as class_labels=[207] (--class 207)"
        ) from error
    check_labels(model, checked)
    return checked


def check_labels(model: ModelEntry, labels: Sequence[int]) -> None:
    """Raises ConfigError if there is no label, or one that the model has no class for."""
    if not labels:
        raise ConfigError("class_labels is empty", hint=f"numbers from 0 to {model.classes - 1}")
    wrong = [label for label in labels if not 0 <= label < model.classes]
    if wrong:
        raise ConfigError(
            f"{model.name} has no class {wrong[0]}", hint=f"its {model.classes} classes are 0 to {model.classes - 1}"
        )


def _prompts(
    manifest: Manifest, labels: int | Sequence[int] | None, texts: Mapping[str, Any]
) -> tuple[list[Text], list[Text] | None]:
    """Prompts and negative prompts of a text model."""
    if labels is not None:
        raise ConfigError(
            f"{manifest.model.name} draws texts, not classes", hint="pass a prompt instead of class_labels"
        )
    prompts = _texts(manifest, texts["prompt"], texts["prompt_embeds"], "prompt")
    if prompts is None:
        raise ConfigError("give a prompt or prompt_embeds", hint="as pipe('a red circle')")
    negatives = _texts(manifest, texts["negative_prompt"], texts["negative_prompt_embeds"], "negative_prompt")
    if negatives is not None and len(negatives) not in (1, len(prompts)):
        raise ConfigError(
            f"{len(negatives)} negative prompts for {len(prompts)} prompts; give one, or one each",
            hint="give one, or one each",
        )
    return prompts, negatives


def _check_cache(manifest: Manifest, schedule: ScaleSchedule, policy: Policy) -> None:
    """Raises ConfigError if a static KV cache is too small for all tokens of the request, the last scale's included."""
    tokens = sum(schedule.tokens[: policy.scales_to_run(schedule)])
    if manifest.cache_tokens is not None and tokens > manifest.cache_tokens:
        raise ConfigError(
            f"the request may compute {tokens} tokens; the static cache of this bundle holds {manifest.cache_tokens}",
            hint="ask for a smaller size, or rebuild the bundle (--kv-cache dynamic has no such limit)",
        )


def check_output_type(output_type: str) -> None:
    """Raises ConfigError for an output type that `OutputType` does not list."""
    if output_type not in get_args(OutputType):
        raise ConfigError(
            f"output_type must be one of {', '.join(get_args(OutputType))}, got {output_type!r}",
            hint="pil is the default",
        )


def _texts(
    manifest: Manifest,
    words: str | Sequence[str] | None,
    features: torch.Tensor | Sequence[torch.Tensor] | None,
    name: str,
) -> list[Text] | None:
    if words is not None and features is not None:
        raise ConfigError(f"give {name} or {name}_embeds, not both", hint="leave one of the two out")
    if words is not None:
        return list(_words(manifest, words, name))
    return None if features is None else list(_features(manifest, features, name))


def _words(manifest: Manifest, words: str | Sequence[str], name: str) -> list[str]:
    if not manifest.has_text_encoder:
        raise ConfigError(f"this bundle has no text encoder: pass {name}_embeds", hint="or build with --text-encoder")
    listed = [words] if isinstance(words, str) else list(words) if isinstance(words, Iterable) else []
    if not listed or not all(isinstance(text, str) for text in listed):
        raise ConfigError(
            f"{name} must be a text or a non-empty list of texts",
            hint="as 'a red circle', or ['a red circle', 'a blue star']",
        )
    for text in listed:
        if not text.strip():
            raise ConfigError(f"the {name} is empty", hint="describe the picture in a few words")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which a client that cuts texts may send
            raise ConfigError(
                f"the {name} {text!r} is not valid Unicode: {error.reason}",
                hint="send UTF-8 text without lone surrogates",
            ) from error
    return listed


def _features(manifest: Manifest, features: torch.Tensor | Sequence[torch.Tensor], name: str) -> list[torch.Tensor]:
    channels, longest = manifest.model.text_channels, manifest.limits.text_tokens
    if not isinstance(features, Iterable):
        raise ConfigError(f"{name}_embeds must be tensors, got {type(features).__name__}", hint="see torch.as_tensor")
    rows = [features] if isinstance(features, torch.Tensor) and features.dim() < 3 else list(features)
    for row in rows:
        if not isinstance(row, torch.Tensor):
            raise ConfigError(f"{name}_embeds must be tensors, got {type(row).__name__}", hint="see torch.as_tensor")
        if row.dim() != 2 or row.shape[1] != channels or not 1 <= row.shape[0] <= longest:
            raise ConfigError(
                f"{name}_embeds must be [tokens, {channels}] with 1 to {longest} tokens, got {list(row.shape)}",
                hint="pass the last hidden state of the model's text encoder, without padding",
            )
        if not all_finite(row.detach()):
            raise ConfigError(
                f"{name}_embeds hold NaN or infinity", hint="check the text encoder that made them, and its precision"
            )
    if not rows:
        raise ConfigError(f"{name}_embeds is empty", hint="give the features of at least one prompt")
    return [row.detach().to(torch.float32) for row in rows]


def _schedules(
    manifest: Manifest,
    count: int,
    aspect_ratio: float | Sequence[float] | None,
    height: int | Sequence[int] | None,
    width: int | Sequence[int] | None,
) -> list[ScaleSchedule]:
    """Schedule of each of `count` images: one size for all of them, or one each."""
    sizes = {"aspect_ratio": aspect_ratio, "height": height, "width": width}
    listed = {name: _one_each(name, value, count) for name, value in sizes.items()}
    return [_schedule(manifest, *(listed[name][i] for name in sizes)) for i in range(count)]


def _one_each(name: str, value: Any, count: int) -> list[Any]:
    kind = Real if name == "aspect_ratio" else Integral
    values = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value] * count
    if len(values) != count:
        raise ConfigError(
            f"{len(values)} values of {name} for {count} images; give one number, or one per image",
            hint="give one number, or one per image",
        )
    for each in values:
        _check_numbers(kind, **{name: each})
    return values


def _schedule(manifest: Manifest, aspect_ratio: float | None, height: int | None, width: int | None) -> ScaleSchedule:
    if height is None and width is None:
        return manifest.schedule(1.0 if aspect_ratio is None else aspect_ratio)
    if aspect_ratio is not None or height is None or width is None:
        raise ConfigError(
            "give height and width together, or aspect_ratio alone (height / width)",
            hint="as height=1024, width=1024 (--height and --width), or aspect_ratio=1.5",
        )
    if height < 1 or width < 1:
        raise ConfigError(f"height and width are pixels, got {height}x{width}", hint="as height=1024, width=1024")
    nearest = manifest.schedule(height / width)
    drawn = tuple(side * manifest.model.pixels_per_token for side in nearest.final_grid)
    if any(abs(side - asked) > asked * _SIZE_TOLERANCE for side, asked in zip(drawn, (height, width), strict=True)):
        offered = ", ".join(f"{h}x{w}" for h, w in sizes(manifest))
        raise ConfigError(
            f"this bundle cannot draw {height}x{width} (height x width); nearest in shape is {drawn[0]}x{drawn[1]}",
            hint=f"it draws {offered}; other sizes take a bundle built with another --size",
        )
    if drawn != (height, width):
        logger.warning("drawing %dx%d (height x width), the size nearest to %dx%d", *drawn, height, width)
    return nearest


def _counting(first: int, count: int) -> list[int]:
    return [operator.index(first) + i for i in range(count)]


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    if seed is None:
        return [secrets.randbits(32) for _ in range(count)]
    try:
        seeds = [operator.index(s) for s in seed] if isinstance(seed, Iterable) else _counting(seed, count)
    except TypeError as error:
        raise ConfigError(f"seeds must be whole numbers, got {seed!r}", hint="as seed=1, or one per image") from error
    if len(seeds) != count:
        raise ConfigError(
            f"{len(seeds)} seeds for {count} images; give one number, or one per image",
            hint="give one number, or one per image",
        )
    if any(not 0 <= s < 2**_SEED_BITS for s in seeds):
        raise ConfigError(f"seeds must lie in [0, 2**{_SEED_BITS}), got {seeds}", hint="leave it out for a drawn one")
    return seeds

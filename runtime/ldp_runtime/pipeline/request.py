"""Request of a caller, checked before any work is done."""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ldp_runtime.architecture.choose import ModelEntry
from ldp_runtime.arguments import is_list, listed, number, shown, truth, whole_number
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.bundle.sizes import sizes
from ldp_runtime.errors import ConfigError
from ldp_runtime.families.choose import guidance_end, guidance_weights, temperatures
from ldp_runtime.guidance import check_weights, last_guided_scale
from ldp_runtime.numerics import all_finite
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.sampling import SamplingFilter
from ldp_runtime.schedule import ScaleSchedule

logger = logging.getLogger(__name__)


OutputType = Literal["pil", "numpy", "torch", "latent"]


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """An encoded text.

    Attributes:
        rows: features of its tokens [T, text_channels].
        pooled: pooled vector [pooled_channels], for models that read one.
    """

    rows: torch.Tensor
    pooled: torch.Tensor | None = None

    def to(self, device: torch.device) -> TextFeatures:
        return TextFeatures(self.rows.to(device), None if self.pooled is None else self.pooled.to(device))


#: A prompt in words, or encoded.
Text = str | TextFeatures


#: Most images of a request, unless a pipeline is loaded with another number.
MAX_IMAGES = 1024


#: Most characters of a prompt: many times what any model reads.
MAX_CHARACTERS = 32_000


_SEED_BITS = 64


#: Most pixels of a side that may be asked for.
_MOST_PIXELS = 1 << 20


#: Longest list of an argument that has one value per image.
MAX_VALUES = 1 << 16


_NEGATIVE = "negative_prompt"


_FLOAT32 = torch.finfo(torch.float32)


#: Types that text features may come in; they are read as float32.
_FEATURE_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


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
        more_smooth: VAR, Switti and HART: draw mixtures of codebook entries.
        ended_temperature, guidance_end: see `ImageSettings`.
    """

    condition: Text | int
    negative: Text | None
    seed: int
    schedule: ScaleSchedule
    guidance: tuple[float, ...]
    temperature: tuple[float, ...]
    filter: SamplingFilter
    policy: Policy
    ended_temperature: tuple[float, ...]
    guidance_end: int
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
    pooled_prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
    negative_pooled_prompt_embeds: torch.Tensor | Sequence[torch.Tensor] | None = None,
    prompt_attention_mask: torch.Tensor | Sequence[torch.Tensor] | None = None,
    negative_prompt_attention_mask: torch.Tensor | Sequence[torch.Tensor] | None = None,
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
    more_smooth: bool | None,
    max_images: int = MAX_IMAGES,
) -> Request:
    """Checks the arguments of `Pipeline.__call__` and fills in the bundle's defaults.

    Args:
        max_images: most images of the request.

    Raises:
        ConfigError: the request cannot be served.
    """
    _check_layers(cfg_insertion_layer)
    each = whole_number("num_images_per_prompt", num_images_per_prompt, 1, max_images)
    more_smooth = manifest.model.more_smooth if more_smooth is None else truth("more_smooth", more_smooth)
    check_output_type(output_type)
    if more_smooth and not manifest.model.mixes_codes:
        raise ConfigError(f"more_smooth mixes codebook entries; {manifest.model.name} draws bits", hint="leave it out")
    texts = {"prompt": prompt, "prompt_embeds": prompt_embeds}
    texts |= {"negative_prompt": negative_prompt, "negative_prompt_embeds": negative_prompt_embeds}
    texts |= {"pooled_prompt_embeds": pooled_prompt_embeds}
    texts |= {"negative_pooled_prompt_embeds": negative_pooled_prompt_embeds}
    texts |= {"prompt_attention_mask": prompt_attention_mask}
    texts |= {"negative_prompt_attention_mask": negative_prompt_attention_mask}
    if manifest.model.reads_text:
        conditions, negatives = _prompts(manifest, class_labels, texts, max_images)
    else:
        conditions, negatives = _labels(manifest.model, class_labels, texts, max_images), [None]
    count = len(conditions) * each
    if count > max_images:
        raise ConfigError(
            f"{count} images were asked for; a request may have {max_images}",
            hint="ask for fewer in one call, or load with a larger max_images",
        )
    schedules = _schedules(manifest, count, aspect_ratio, height, width)
    settings = {
        schedule: _settings(manifest, schedule, guidance_scale, temperature, top_k, top_p, policy or Policy())
        for schedule in dict.fromkeys(schedules)
    }
    if len(settings) > 1 and output_type != "pil":
        raise ConfigError(
            f"images of {len(settings)} sizes make no array", hint='ask for output_type="pil", or for one size a call'
        )
    _check_unconditional(manifest, negatives, [own[0] for own in settings.values()])
    seeds = _seeds(seed, count)
    images = []
    for i in range(count):
        index = i // each
        negative = negatives[index if len(negatives) > 1 else 0]
        own = settings[schedules[i]]
        images.append(ImageRequest(conditions[index], negative, seeds[i], schedules[i], *own, more_smooth=more_smooth))
    return Request(tuple(images), output_type)  # pyright: ignore[reportArgumentType]


def _check_layers(layers: Any) -> None:
    """Raises ConfigError for layers where guidance is mixed that engines do not have."""
    if not is_list(layers) or [shown(layer) for layer in listed("cfg_insertion_layer", layers, MAX_IMAGES)] != ["0"]:
        raise ConfigError(
            f"engines mix guidance at the logits only, not at cfg_insertion_layer {shown(layers)}",
            hint="leave it at [0]; guidance inside the blocks exists in ldp_export.reference.infinity",
        )


def _check_unconditional(
    manifest: Manifest, negatives: Sequence[Text | None], guidance: Sequence[tuple[float, ...]]
) -> None:
    """Raises ConfigError if guidance needs an encoded empty text, and neither bundle nor request has one."""
    guided = any(last_guided_scale(weights) >= 0 for weights in guidance)
    if guided and None in negatives and not (manifest.model.learns_unconditional or manifest.has_text_encoder):
        raise ConfigError(
            f"{manifest.model.name} is guided by an encoded empty text, and this bundle has no text encoder",
            hint="pass negative_prompt_embeds, or build the bundle with --text-encoder",
        )


def _settings(
    manifest: Manifest,
    schedule: ScaleSchedule,
    guidance_scale: float | Sequence[float] | None,
    temperature: float | Sequence[float] | None,
    top_k: int | None,
    top_p: float | None,
    policy: Policy,
) -> tuple[tuple[float, ...], tuple[float, ...], SamplingFilter, Policy, tuple[float, ...], int]:
    """Settings of images of one size in the order of `ImageRequest`, with the bundle's defaults filled in."""
    defaults, S = manifest.defaults, len(schedule)
    given = defaults.temperature if temperature is None else temperature
    guided, ended = temperatures(manifest.model, given, S)
    if any(t <= 0 for t in ended):
        raise ConfigError(f"temperature must be positive, got {ended}", hint="top_k=1 draws the likeliest bits")
    if any(not _FLOAT32.tiny <= t <= _FLOAT32.max for t in ended):
        raise ConfigError(
            f"temperature is beyond float32, got {ended}", hint="numbers around 1; top_k=1 draws the likeliest"
        )
    policy.check(schedule)
    _check_cache(manifest, schedule, policy)
    guidance = defaults.guidance if guidance_scale is None else guidance_scale
    weights = guidance_weights(manifest.model, guidance, S)
    check_weights(weights)
    rule = SamplingFilter(defaults.top_k if top_k is None else top_k, defaults.top_p if top_p is None else top_p)
    return weights, guided, rule, policy, ended, guidance_end(manifest.model, guidance, S)


def _labels(model: ModelEntry, labels: int | Sequence[int] | None, texts: Mapping[str, object], most: int) -> list[int]:
    """Class labels of a class-conditional model; no negative prompt is what a web form's empty field means."""
    names = [name for name, value in texts.items() if value is not None and not _is_unused(name, value)]
    if names:
        raise ConfigError(
            f"{model.name} draws classes and reads no text, but {names[0]} was given",
            hint=f"pass class_labels (0 to {model.classes - 1})",
        )
    if labels is None:
        raise ConfigError(f"{model.name} needs class_labels", hint=f"numbers from 0 to {model.classes - 1}")
    given = listed("class_labels", labels, most) if is_list(labels) else [labels]
    hint = f"its {model.classes} classes are 0 to {model.classes - 1}"
    checked = [whole_number("class label", label, -(2**63), 2**63 - 1, hint) for label in given]
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
    manifest: Manifest, labels: int | Sequence[int] | None, texts: Mapping[str, Any], most: int
) -> tuple[list[Text], list[Text | None]]:
    """Prompts and negative prompts of a text model, one for all or one each; None where there is no negative one."""
    if labels is not None:
        raise ConfigError(
            f"{manifest.model.name} draws texts, not classes", hint="pass a prompt instead of class_labels"
        )
    prompts = _texts(manifest, texts, "prompt", most)
    if prompts is None:
        raise ConfigError("the request has no text", hint="give a prompt or prompt_embeds")
    negatives: Sequence[Text | None] = _texts(manifest, texts, _NEGATIVE, most) or [None]
    if len(negatives) not in (1, len(prompts)):
        raise ConfigError(f"{len(negatives)} negative prompts for {len(prompts)} prompts", hint="give one, or one each")
    empty = [text for text in prompts if _is_empty(text)]
    if empty:
        raise ConfigError("the prompt is empty", hint="describe the picture in a few words")
    return prompts, [None if _is_empty(text) else text for text in negatives]


def _is_empty(text: object) -> bool:
    return isinstance(text, str) and not text.strip()


def _is_unused(name: str, value: object) -> bool:
    """True for negative prompts that are all empty, which is what a web form sends for none."""
    texts = value if isinstance(value, list | tuple) else [value]
    return name == _NEGATIVE and len(texts) > 0 and all(map(_is_empty, texts))


def _check_cache(manifest: Manifest, schedule: ScaleSchedule, policy: Policy) -> None:
    """Raises ConfigError if a static KV cache is too small for all tokens of the request, the last scale's included."""
    tokens = sum(schedule.tokens[: policy.scales_to_run(schedule)])
    if manifest.cache_tokens is not None and tokens > manifest.cache_tokens:
        raise ConfigError(
            f"the request may compute {tokens} tokens; the static cache of this bundle holds {manifest.cache_tokens}",
            hint="ask for a smaller size, or rebuild the bundle (--kv-cache dynamic has no such limit)",
        )


def check_output_type(output_type: object) -> None:
    """Raises ConfigError for an output type that `OutputType` does not list."""
    if not isinstance(output_type, str) or output_type not in get_args(OutputType):
        raise ConfigError(
            f"there is no output_type {shown(output_type)}", hint=f"one of {', '.join(get_args(OutputType))}"
        )


def _texts(manifest: Manifest, texts: Mapping[str, Any], name: str, most: int) -> list[Text] | None:
    """Words or features of a request's prompts or negative prompts; None if there are none."""
    words, features = texts[name], texts[f"{name}_embeds"]
    pooled_name = f"{name.removesuffix('prompt')}pooled_prompt_embeds"
    pooled = texts[pooled_name]
    if pooled is not None and (features is None or not manifest.model.pooled_channels):
        raise ConfigError(
            f"{pooled_name} is given, but {manifest.model.name} reads no pooled text"
            if not manifest.model.pooled_channels
            else f"{pooled_name} is given without {name}_embeds",
            hint="leave it out" if not manifest.model.pooled_channels else "give both, or the words",
        )
    mask_name, masks = f"{name}_attention_mask", texts[f"{name}_attention_mask"]
    if masks is not None and (features is None or not manifest.model.position_channels):
        raise ConfigError(
            f"{mask_name} is given, but {manifest.model.name} reads no padding"
            if not manifest.model.position_channels
            else f"{mask_name} is given without {name}_embeds",
            hint="leave it out" if not manifest.model.position_channels else "give both, or the words",
        )
    if words is not None and features is not None and not _is_unused(name, words):
        raise ConfigError(f"{name} and {name}_embeds are given, not both", hint="leave one of them out")
    if features is not None:
        rows = _features(manifest, features, f"{name}_embeds", most)
        rows = _with_positions(manifest, rows, masks, mask_name, most)
        return [*_with_pooled(manifest, rows, pooled, pooled_name, most)]
    return None if words is None else list(_words(manifest, words, name, most))


def _words(manifest: Manifest, words: str | Sequence[str], name: str, most: int) -> list[str]:
    given = [words] if isinstance(words, str) else listed(name, words, most) if is_list(words) else []
    if not given or not all(isinstance(text, str) for text in given):
        raise ConfigError(
            f"{name} must be a text or a non-empty list of texts, got {shown(words)}", hint=f"as {name}='a red circle'"
        )
    if not manifest.has_text_encoder and not _is_unused(name, given):
        raise ConfigError(f"this bundle has no text encoder: pass {name}_embeds", hint="or build with --text-encoder")
    for text in given:
        if len(text) > MAX_CHARACTERS:
            raise ConfigError(f"the {name} has {len(text)} characters", hint=f"at most {MAX_CHARACTERS} are read")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half a surrogate pair, which a client that cuts texts may send
            raise ConfigError(
                f"the {name} {shown(text)} is not valid Unicode: {error.reason}", hint="cut texts between characters"
            ) from error
    return given


def _features(manifest: Manifest, features: Any, name: str, most: int) -> list[torch.Tensor]:
    if isinstance(features, torch.Tensor) and features.dim() < 3:
        features = [features]
    if not is_list(features):
        raise ConfigError(f"{name} must be tensors, got {type(features).__name__}", hint="see torch.as_tensor")
    rows = listed(name, features, most)
    if not rows:
        raise ConfigError(f"{name} is empty", hint="give the features of at least one prompt")
    return [_read_features(manifest, row, name) for row in rows]


def _with_pooled(
    manifest: Manifest, rows: Sequence[torch.Tensor], pooled: Any, name: str, most: int
) -> list[TextFeatures]:
    """Encoded texts; without a pooled vector, that of the last token, as its text tower pools."""
    channels = manifest.model.pooled_channels
    if not channels:
        return [TextFeatures(each) for each in rows]
    if pooled is None:
        return [pooled_by_last_token(each, channels) for each in rows]
    if isinstance(pooled, torch.Tensor):
        pooled = [pooled] if pooled.dim() < 2 else list(pooled)
    if not is_list(pooled) or len(vectors := listed(name, pooled, most)) != len(rows):
        raise ConfigError(f"{name} must be one vector for each of {len(rows)} texts", hint=f"[{channels}] each")
    for vector in vectors:
        _check_dense(vector, name)
        if vector.shape != (channels,):
            raise ConfigError(f"{name} must be [{channels}], got {list(vector.shape)}", hint="of the second text tower")
    return [TextFeatures(each, _own_numbers(v, name)) for each, v in zip(rows, vectors, strict=True)]


def _with_positions(
    manifest: Manifest, rows: Sequence[torch.Tensor], masks: Any, name: str, most: int
) -> list[torch.Tensor]:
    """Features with their positions as last channel, for models that read padding; without a mask nothing is padding.

    A row of padding has the position of the token before it.
    """
    if not manifest.model.position_channels:
        return list(rows)
    if isinstance(masks, torch.Tensor):
        masks = [masks] if masks.dim() < 2 else list(masks)
    if masks is not None and (not is_list(masks) or len(listed(name, masks, most)) != len(rows)):
        raise ConfigError(f"{name} must be one mask for each of {len(rows)} texts", hint="[tokens] each")
    given = (
        [torch.ones(len(row), dtype=torch.float32, device=row.device) for row in rows] if masks is None else [*masks]
    )
    odd = [mask for mask, row in zip(given, rows, strict=True) if not _is_mask(mask, len(row))]
    if odd:
        raise ConfigError(
            f"{name} must mark tokens of {[len(row) for row in rows]} rows with True or 1, others with False or 0, "
            f"got {shown(odd[0])}",
            hint="as the tokenizer gives it; at least one row is a token",
        )
    with torch.inference_mode(False):
        places = [(mask != 0).long().cumsum(0) - 1 for mask in given]
        return [
            torch.cat((row, place.to(row.device, row.dtype)[:, None]), dim=1)
            for row, place in zip(rows, places, strict=True)
        ]


def _is_mask(mask: Any, rows: int) -> bool:
    if not isinstance(mask, torch.Tensor) or mask.layout != torch.strided or mask.is_meta or mask.is_complex():
        return False
    return mask.shape == (rows,) and bool(((mask == 0) | (mask == 1)).all()) and bool((mask != 0).any())


def pooled_by_last_token(rows: torch.Tensor, channels: int) -> TextFeatures:
    """Encoded text of features [T, text_channels], pooled by its last token: the last `channels` of its last row."""
    return TextFeatures(rows, rows[-1, -channels:].contiguous())


def _read_features(manifest: Manifest, row: Any, name: str) -> torch.Tensor:
    """Text features [T, text_channels] as float32, contiguous, of their own memory."""
    channels, longest = manifest.model.text_channels - manifest.model.position_channels, manifest.limits.text_tokens
    _check_dense(row, name)
    fixed = manifest.model.fixed_text_tokens
    if fixed and row.shape != (fixed, channels):
        raise ConfigError(
            f"{name} must be [{fixed}, {channels}], got {list(row.shape)}",
            hint=f"pass the last hidden state of all {fixed} rows, those of padding too, and their mask",
        )
    if row.dim() != 2 or row.shape[1] != channels or not 1 <= row.shape[0] <= longest:
        raise ConfigError(
            f"{name} must be [tokens, {channels}] with 1 to {longest} tokens, got {list(row.shape)}",
            hint="pass the last hidden state of the model's text encoder, without padding",
        )
    return _own_numbers(row, name)


def _check_dense(row: Any, name: str) -> None:
    """Raises ConfigError for what is no dense tensor of a type that features have."""
    if not isinstance(row, torch.Tensor):
        raise ConfigError(f"{name} must be tensors, got {shown(row)}", hint="see torch.as_tensor")
    if row.layout != torch.strided or row.is_nested or row.dtype not in _FEATURE_TYPES or row.is_meta:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in _FEATURE_TYPES)
        raise ConfigError(
            f"{name} must be dense tensors of {kinds}, got {row.dtype} ({row.layout}) on {row.device}",
            hint="convert them: .to_dense(), .to(torch.float32)",
        )


def _own_numbers(row: torch.Tensor, name: str) -> torch.Tensor:
    """Finite numbers of a caller's tensor as float32, contiguous, of their own memory."""
    with torch.inference_mode(False), torch.no_grad():
        own = torch.empty(row.shape, dtype=torch.float32, device=row.device).copy_(row)
        if not all_finite(own):
            raise ConfigError(
                f"{name} hold NaN or infinity, or numbers beyond float32", hint="check the text encoder that made them"
            )
    return own


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
    values = listed(name, value, MAX_VALUES) if is_list(value) else [value] * count
    if len(values) != count:
        raise ConfigError(
            f"{len(values)} values of {name} for {count} images", hint="give one number, or one per image"
        )
    if name == "aspect_ratio":
        return [None if each is None else number(name, each, hint="height / width") for each in values]
    return [None if each is None else whole_number(name, each, 1, _MOST_PIXELS, hint="in pixels") for each in values]


def _schedule(manifest: Manifest, aspect_ratio: float | None, height: int | None, width: int | None) -> ScaleSchedule:
    if height is None and width is None:
        return manifest.schedule(1.0 if aspect_ratio is None else aspect_ratio)
    if aspect_ratio is not None or height is None or width is None:
        raise ConfigError(
            "height and width go together, and without aspect_ratio (height / width)",
            hint="as height=1024, width=1024 (--height and --width), or aspect_ratio=1.5",
        )
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


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    """Seed of each image; whole numbers of 64 bits, which PyTorch's generator takes as they are."""
    if seed is None:
        return [secrets.randbits(32) for _ in range(count)]
    given = listed("seed", seed, MAX_VALUES) if is_list(seed) else [seed]
    seeds = [whole_number("seeds", each, -math.inf, math.inf, hint="numbers from 0") for each in given]
    if not is_list(seed):
        seeds = [seeds[0] + i for i in range(count)]
    if len(seeds) != count:
        raise ConfigError(f"{len(seeds)} seeds for {count} images", hint="give one number, or one per image")
    wrong = [each for each in seeds if not 0 <= each < 2**_SEED_BITS]
    if wrong:
        raise ConfigError(
            f"seeds must lie in [0, 2**{_SEED_BITS}), got {shown(wrong[0])}", hint="leave it out for a drawn one"
        )
    return seeds

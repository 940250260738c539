"""From a checked body to requests of a model: what a client asks for is compared with what the bundle draws."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from ldp_runtime.bundle.saved_policies import resolve_policy
from ldp_runtime.errors import ConfigError
from ldp_runtime.pipeline.request import ImageRequest, make_request, sizes
from ldp_runtime.pruning.policy import Policy

from ldp_serving.front.body import BadRequest, GenerationBody
from ldp_serving.model import ServedModel

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})")


@dataclass(frozen=True)
class Asked:
    """A request that can be served.

    Attributes:
        images: one a picture.
        size: that is drawn, as WIDTHxHEIGHT.
        text_tokens: tokens of the prompts that the model reads.
    """

    images: tuple[ImageRequest, ...]
    size: str
    text_tokens: int


def to_requests(body: GenerationBody, model: ServedModel, most_images: int) -> Asked:
    """Requests of a body, in the bundle's terms.

    Raises:
        BadRequest: the bundle does not draw what is asked for; nothing was done.
    """
    if body.count > most_images:
        raise BadRequest(f"invalid 'n': at most {most_images} pictures a request", "n")
    height, width = _size(body, model)
    condition, tokens = _condition(body, model)
    try:
        request = make_request(
            model.pipeline.manifest,
            **condition,
            prompt_embeds=None,
            negative_prompt_embeds=None,
            guidance_scale=body.guidance_scale,
            temperature=body.temperature,
            top_k=None,
            top_p=None,
            num_images_per_prompt=body.count,
            seed=body.seed,
            policy=_policy(body, model),
            aspect_ratio=None,
            height=height,
            width=width,
            output_type="pil",
            cfg_insertion_layer=(0,),
            more_smooth=None,
        )
    except ConfigError as error:
        raise BadRequest(error.message, _param(error.message)) from None
    return Asked(request.images, f"{width}x{height}", tokens)


def _param(message: str) -> str | None:
    """Field that a message of the runtime speaks of."""
    names = ("guidance_scale", "temperature", "seed", "negative_prompt", "class", "policy", "prompt")
    found = next((name for name in names if name in message), None)
    return "class_label" if found == "class" else found


def _condition(body: GenerationBody, model: ServedModel) -> tuple[dict[str, Any], int]:
    """Text or class that is drawn, and the number of text tokens."""
    pipeline, classes = model.pipeline, model.classes
    if classes is not None:
        if body.negative_prompt is not None:
            raise BadRequest(f"{model.name} draws classes and reads no text", "negative_prompt")
        if body.class_label is None:
            raise BadRequest(f"{model.name} draws classes: give 'class_label', 0 to {classes - 1}", "class_label")
        if body.class_label >= classes:
            raise BadRequest(f"invalid 'class_label': {model.name} has classes 0 to {classes - 1}", "class_label")
        if body.prompt.strip():
            raise BadRequest(f"{model.name} draws classes and reads no text: leave 'prompt' empty", "prompt")
        return {"prompt": None, "negative_prompt": None, "class_labels": body.class_label}, 0
    if body.class_label is not None:
        raise BadRequest(f"{model.name} draws texts, not classes", "class_label")
    tokens, most = 0, pipeline.manifest.limits.text_tokens
    for name in ("prompt", "negative_prompt"):
        text = getattr(body, name)
        if text is None:
            continue
        if not text.strip():
            raise BadRequest(f"the '{name}' is empty: describe the picture in a few words", name)
        count = pipeline.text_tokens(text)
        if count > most:
            words = f"the '{name}' has {count} tokens; the model reads {most}"
            raise BadRequest(words, name, "string_above_max_length")
        tokens += count
    return {"prompt": body.prompt, "negative_prompt": body.negative_prompt, "class_labels": None}, tokens


def _policy(body: GenerationBody, model: ServedModel) -> Policy | None:
    """Policy of the pictures: the server's, or one that it lets clients choose. A path is never read."""
    asked = model.policy if body.policy is None else body.policy.strip()
    if asked not in (model.policy, *model.allowed):
        offered = ", ".join(dict.fromkeys((model.policy, *model.allowed)))
        raise BadRequest(f"invalid 'policy': this server draws with {offered}", "policy")
    return resolve_policy(asked, model.pipeline.root, model.pipeline.manifest)


def _size(body: GenerationBody, model: ServedModel) -> tuple[int, int]:
    """Height and width that are drawn."""
    manifest = model.pipeline.manifest
    offered = sizes(manifest)
    if body.size in (None, "auto"):
        if body.aspect_ratio is None:
            return _drawn(model, 1.0)
        try:
            return _drawn(model, body.aspect_ratio)
        except ConfigError as error:
            raise BadRequest(error.message, "aspect_ratio") from None
    assert body.size is not None
    if body.aspect_ratio is not None:
        raise BadRequest("give 'size' or 'aspect_ratio', not both", "aspect_ratio")
    match = _SIZE.fullmatch(body.size)
    if match is None:
        raise BadRequest("invalid 'size': 'auto' or WIDTHxHEIGHT in pixels", "size")
    width, height = int(match[1]), int(match[2])
    if (height, width) in offered:
        return height, width
    listed = ", ".join(f"{w}x{h}" for h, w in offered)
    if not body.nearest_size:
        raise BadRequest(f"invalid 'size': this model draws {listed}; 'nearest_size': true takes the nearest", "size")
    try:
        return _drawn(model, height / width)
    except ConfigError as error:
        raise BadRequest(error.message, "size") from None


def _drawn(model: ServedModel, aspect_ratio: float) -> tuple[int, int]:
    manifest = model.pipeline.manifest
    side = manifest.model.pixels_per_token
    h, w = manifest.schedule(aspect_ratio).final_grid
    return h * side, w * side

"""Conditions: the text or class of an image, turned into the rows that the blocks read, one per branch of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import torch

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.engines.blocks import PromptRows
from ldp_runtime.engines.prompt import PASSED_ON
from ldp_runtime.engines.tensors import axis_sizes, empty
from ldp_runtime.errors import ConfigError
from ldp_runtime.numerics import check_finite
from ldp_runtime.pipeline.open_engines import Engines
from ldp_runtime.pipeline.request import ImageRequest, Text
from ldp_runtime.tokenizer import PromptTokenizer

#: Rows of one condition: the conditional one, and the unconditional one (None without guidance).
Branches = tuple[PromptRows, PromptRows | None]


def condition_rows(
    engines: Engines,
    manifest: Manifest,
    tokenizer: PromptTokenizer | None,
    images: Sequence[ImageRequest],
) -> PromptRows:
    """Rows [conditional of each image, unconditional of each guided one]; a text shared by images is encoded once."""
    encode = cache(partial(_features, engines, manifest, tokenizer))  # tensors are hashed by identity, here and below
    try:
        for image in images:  # all of them before the first prompt: the text encoder may have to leave memory
            for text in (image.condition, image.negative if image.is_guided else None):
                if text is not None and not isinstance(text, int):
                    encode(text)
    finally:
        engines.release_text_encoder()
    if len(images) == 1:
        return _image_rows(engines, manifest, encode, images[0])
    known: dict[tuple[Text | int, Text | None, bool], Branches] = {}
    pairs = []
    for image in images:
        key = (image.condition, image.negative, image.is_guided)
        if key not in known:
            known[key] = _split(_image_rows(engines, manifest, encode, image))
        pairs.append(known[key])
    conditional = [pair[0] for pair in pairs]
    return PromptRows.stack(conditional + [pair[1] for pair in pairs if pair[1] is not None])


def _image_rows(
    engines: Engines, manifest: Manifest, encode: Callable[[Text], torch.Tensor], image: ImageRequest
) -> PromptRows:
    """Rows [conditional, unconditional] of one image; without guidance the conditional row alone."""
    guided = image.is_guided
    if isinstance(image.condition, int):
        return class_rows(engines, manifest, image.condition, guided)
    features = encode(image.condition)
    if not guided or image.negative is None:
        return text_rows(engines, manifest, features, guided)
    texts = (features, encode(image.negative))
    return PromptRows.stack([run_prompt(engines, manifest, {"features": text[None]}) for text in texts])


def text_rows(engines: Engines, manifest: Manifest, features: torch.Tensor, guided: bool) -> PromptRows:
    """Rows of one text [T, text_channels]; the unconditional text is cut to its length, so that one call does both."""
    rows = [features, engines.constants["unconditional_text"][: len(features)]] if guided else [features]
    return run_prompt(engines, manifest, {"features": torch.stack(rows)})


def class_rows(engines: Engines, manifest: Manifest, label: int, guided: bool) -> PromptRows:
    """Rows of one class; the label after the last class is the unconditional one."""
    labels = [label, manifest.model.classes] if guided else [label]
    return run_prompt(
        engines, manifest, {"labels": torch.tensor(labels, dtype=torch.int64, device=engines.prompt.device)}
    )


def _features(engines: Engines, manifest: Manifest, tokenizer: PromptTokenizer | None, text: Text) -> torch.Tensor:
    """Text features [T, text_channels]; each prompt is encoded at its own length, so the batch cannot affect it."""
    if isinstance(text, torch.Tensor):
        return text.to(engines.prompt.device)
    if engines.text_encoder is None or tokenizer is None:
        raise ConfigError(
            "this bundle has no text encoder: pass prompt_embeds",
            hint="pass prompt_embeds, or build the bundle with --text-encoder",
        )
    ids = tokenizer(text).to(engines.text_encoder.device)
    features = torch.empty(1, len(ids), manifest.model.text_channels, dtype=torch.float32, device=ids.device)
    engines.text_encoder.run({"ids": ids[None]}, {"features": features})
    check_finite("text_encoder", features)
    return features[0]


def _split(rows: PromptRows) -> Branches:
    return (rows, None) if rows.rows == 1 else (rows.take([0]), rows.take([1]))


def run_prompt(engines: Engines, manifest: Manifest, inputs: Mapping[str, torch.Tensor]) -> PromptRows:
    """Runs the prompt graph on text features [R, T, text_channels] of equally long texts, or on class labels [R]."""
    graphs, device = manifest.chunks("prompt"), engines.prompt.device
    inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
    sizes = axis_sizes(graphs[0].inputs, inputs, "prompt")
    outputs = {
        tensor.name: empty(tensor, sizes, device)
        for graph in graphs
        for tensor in graph.outputs
        if tensor.name != PASSED_ON
    }
    engines.prompt.run(inputs, outputs)
    check_finite("prompt", *outputs.values())
    start = outputs.pop("start")
    if "text" in sizes:
        outputs["text_mask"] = torch.ones(len(start), sizes["text"], dtype=torch.bool, device=device)
    return PromptRows(start, outputs)

"""Conditions: the text or class of an image, turned into the rows that the blocks read, one per branch of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.engines.blocks import PromptRows
from ldp_runtime.engines.prompt import passed_on
from ldp_runtime.engines.tensors import axis_sizes, empty
from ldp_runtime.errors import ConfigError
from ldp_runtime.numerics import check_finite
from ldp_runtime.pipeline.open_engines import Engines
from ldp_runtime.pipeline.request import ImageRequest, Text, TextFeatures, pooled_by_last_token
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
    features = _encoded(engines, manifest, tokenizer, images)
    if len(images) == 1:
        return _image_rows(engines, manifest, features, images[0])
    known: dict[tuple[Text | int, Text | None, bool], Branches] = {}
    pairs = []
    for image in images:
        key = (image.condition, image.negative, image.is_guided)
        if key not in known:
            known[key] = _split(_image_rows(engines, manifest, features, image))
        pairs.append(known[key])
    conditional = [pair[0] for pair in pairs]
    return PromptRows.stack(conditional + [pair[1] for pair in pairs if pair[1] is not None])


def _image_rows(
    engines: Engines, manifest: Manifest, encoded: Mapping[Text, TextFeatures], image: ImageRequest
) -> PromptRows:
    """Rows [conditional, unconditional] of one image; without guidance the conditional row alone."""
    guided = image.is_guided
    if isinstance(image.condition, int):
        return class_rows(engines, manifest, image.condition, guided)
    features = encoded[image.condition]
    if not guided or image.negative is None:
        return text_rows(engines, manifest, features, guided)
    return texts_rows(engines, manifest, [features, encoded[image.negative]])


def text_rows(engines: Engines, manifest: Manifest, features: TextFeatures, guided: bool) -> PromptRows:
    """Rows of one text, and with guidance of the unconditional one."""
    texts = [features, _unconditional(engines, manifest, features)] if guided else [features]
    return texts_rows(engines, manifest, texts)


def _unconditional(engines: Engines, manifest: Manifest, features: TextFeatures) -> TextFeatures:
    """Unconditional text: learned rows, cut to the prompt's length, so that one call does both; or an empty text."""
    rows = engines.constants["unconditional_text"]
    if manifest.model.learns_unconditional:
        return TextFeatures(rows[: len(features.rows)])
    return pooled_by_last_token(rows, manifest.model.pooled_channels)


def texts_rows(engines: Engines, manifest: Manifest, texts: Sequence[TextFeatures]) -> PromptRows:
    """A row of each text; those of one length share a call."""
    if len({len(text.rows) for text in texts}) == 1:
        return run_prompt(engines, manifest, prompt_inputs(texts))
    return PromptRows.stack([run_prompt(engines, manifest, prompt_inputs([text])) for text in texts])


def prompt_inputs(texts: Sequence[TextFeatures]) -> dict[str, torch.Tensor]:
    """Inputs of the prompt graph from equally long texts."""
    pooled = [text.pooled for text in texts if text.pooled is not None]
    inputs = {"features": torch.stack([text.rows for text in texts])}
    return inputs | ({"pooled": torch.stack(pooled)} if pooled else {})


def class_rows(engines: Engines, manifest: Manifest, label: int, guided: bool) -> PromptRows:
    """Rows of one class; the label after the last class is the unconditional one."""
    labels = [label, manifest.model.classes] if guided else [label]
    return run_prompt(
        engines, manifest, {"labels": torch.tensor(labels, dtype=torch.int64, device=engines.prompt.device)}
    )


def _encoded(
    engines: Engines, manifest: Manifest, tokenizer: PromptTokenizer | None, images: Sequence[ImageRequest]
) -> dict[Text, TextFeatures]:
    """Features of each text; encoded ones are hashed by identity.

    Texts of as many tokens share a call. Each is encoded at its own length, so the others cannot affect it. All are
    encoded before the first prompt is run: the text encoder may have to leave memory.
    """
    wanted = [text for image in images for text in (image.condition, image.negative if image.is_guided else None)]
    texts = [text for text in dict.fromkeys(wanted) if isinstance(text, str | TextFeatures)]
    encoded: dict[Text, TextFeatures] = {
        text: text.to(engines.prompt.device) for text in texts if isinstance(text, TextFeatures)
    }
    by_length: dict[int, dict[str, torch.Tensor]] = {}
    for text in (text for text in texts if isinstance(text, str)):
        if engines.text_encoder is None or tokenizer is None:
            raise ConfigError(
                "this bundle has no text encoder: pass prompt_embeds",
                hint="pass prompt_embeds, or build the bundle with --text-encoder",
            )
        ids = tokenizer(text)
        by_length.setdefault(len(ids), {})[text] = ids
    try:
        for same in by_length.values():
            for part in _calls(manifest, list(same)):
                features = _features(engines, manifest, [same[text] for text in part])
                encoded |= zip(part, (_of_encoder(manifest, rows) for rows in features), strict=True)
    finally:
        engines.release_text_encoder()
    return encoded


def _calls(manifest: Manifest, texts: list[str]) -> list[list[str]]:
    """Texts of equal length, in calls that the text encoder takes: an engine with profiles may take one row only."""
    (graph,) = manifest.chunks("text_encoder")
    return [[text] for text in texts] if graph.profiles else [texts]


def _features(engines: Engines, manifest: Manifest, ids: Sequence[torch.Tensor]) -> torch.Tensor:
    """Features [R, T, text_channels] of equally long texts."""
    assert engines.text_encoder is not None
    rows = torch.stack(list(ids)).to(engines.text_encoder.device)
    features = torch.empty(*rows.shape, manifest.model.text_channels, dtype=torch.float32, device=rows.device)
    engines.text_encoder.run({"ids": rows}, {"features": features})
    check_finite("text_encoder", features)
    return features


def _of_encoder(manifest: Manifest, rows: torch.Tensor) -> TextFeatures:
    pooled = manifest.model.pooled_channels
    return pooled_by_last_token(rows, pooled) if pooled else TextFeatures(rows)


def _split(rows: PromptRows) -> Branches:
    return (rows, None) if rows.rows == 1 else (rows.take([0]), rows.take([1]))


def run_prompt(engines: Engines, manifest: Manifest, inputs: Mapping[str, torch.Tensor]) -> PromptRows:
    """Runs the prompt graph on labels [R], or on features [R, T, text_channels] and pooled vectors of equal texts."""
    graphs, device = manifest.chunks("prompt"), engines.prompt.device
    inputs = {name: tensor.contiguous() for name, tensor in inputs.items()}
    sizes, inner = axis_sizes(graphs[0].inputs, inputs, "prompt"), passed_on(graphs)
    outputs = {
        tensor.name: empty(tensor, sizes, device)
        for graph in graphs
        for tensor in graph.outputs
        if tensor.name not in inner
    }
    engines.prompt.run(inputs, outputs)
    check_finite("prompt", *outputs.values())
    start = outputs.pop("start")
    if "text" in sizes:
        outputs["text_mask"] = torch.ones(len(start), sizes["text"], dtype=torch.bool, device=device)
    return PromptRows(start, outputs)

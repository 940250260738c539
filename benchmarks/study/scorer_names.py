"""Names and shapes of the published scorers' weights, by their publishers' names, for files of random ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ldp_calibration.evaluation.networks.clip import CONTEXT, ClipSize, TowerSize
from ldp_calibration.evaluation.networks.mask2former import DetectorSize
from ldp_calibration.evaluation.networks.reward import RewardSize

Shapes = Iterator[tuple[str, tuple[int, ...]]]
#: Width of a window of Swin, sampled points and levels of the pixel decoder.
_WINDOW, _POINTS, _LEVELS = 7, 4, 3


def _linear(name: str, rows: int, columns: int) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def clip(size: ClipSize) -> Shapes:
    """Weights by open_clip's names."""
    vision, text = size.vision.width, size.text.width
    yield "logit_scale", ()
    yield "positional_embedding", (CONTEXT, text)
    yield "token_embedding.weight", (size.vocabulary, text)
    yield "text_projection", (text, size.embed)
    yield from _norm("ln_final", text)
    yield from _tower("transformer", size.text)
    yield "visual.class_embedding", (vision,)
    yield "visual.conv1.weight", (vision, 3, size.patch, size.patch)
    yield "visual.positional_embedding", ((size.side // size.patch) ** 2 + 1, vision)
    yield "visual.proj", (vision, size.embed)
    for name in ("ln_pre", "ln_post"):
        yield from _norm(f"visual.{name}", vision)
    yield from _tower("visual.transformer", size.vision)


def _tower(name: str, size: TowerSize) -> Shapes:
    width = size.width
    for i in range(size.layers):
        block = f"{name}.resblocks.{i}"
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{block}.attn.out_proj", width, width)
        yield from _linear(f"{block}.mlp.c_fc", 4 * width, width)
        yield from _linear(f"{block}.mlp.c_proj", width, 4 * width)
        for norm in ("ln_1", "ln_2"):
            yield from _norm(f"{block}.{norm}", width)


def reward(size: RewardSize) -> Shapes:
    """Weights by ImageReward's names."""
    vision, text = size.vision.width, size.text.width
    yield from _reward_vision(size)
    root = "blip.text_encoder"
    yield f"{root}.embeddings.word_embeddings.weight", (size.vocabulary, text)
    yield f"{root}.embeddings.position_embeddings.weight", (size.positions, text)
    yield f"{root}.embeddings.position_ids", (1, size.positions)
    yield from _norm(f"{root}.embeddings.LayerNorm", text)
    for i in range(size.text.layers):
        layer = f"{root}.encoder.layer.{i}"
        for attention, width in (("attention", text), ("crossattention", vision)):
            yield from _linear(f"{layer}.{attention}.self.query", text, text)
            for part in ("key", "value"):
                yield from _linear(f"{layer}.{attention}.self.{part}", text, width)
            yield from _linear(f"{layer}.{attention}.output.dense", text, text)
            yield from _norm(f"{layer}.{attention}.output.LayerNorm", text)
        yield from _linear(f"{layer}.intermediate.dense", 4 * text, text)
        yield from _linear(f"{layer}.output.dense", text, 4 * text)
        yield from _norm(f"{layer}.output.LayerNorm", text)
    for name, width in (("vision_proj", vision), ("text_proj", text)):
        yield from _linear(f"blip.{name}", 256, width)
    for number, rows, columns in ((0, 1024, text), (2, 128, 1024), (4, 64, 128), (6, 16, 64), (7, 1, 16)):
        yield from _linear(f"mlp.layers.{number}", rows, columns)


def _reward_vision(size: RewardSize) -> Shapes:
    root, width = "blip.visual_encoder", size.vision.width
    yield f"{root}.cls_token", (1, 1, width)
    yield f"{root}.pos_embed", (1, (size.side // size.patch) ** 2 + 1, width)
    yield f"{root}.patch_embed.proj.weight", (width, 3, size.patch, size.patch)
    yield f"{root}.patch_embed.proj.bias", (width,)
    yield from _norm(f"{root}.norm", width)
    for i in range(size.vision.layers):
        block = f"{root}.blocks.{i}"
        yield from _linear(f"{block}.attn.qkv", 3 * width, width)
        yield from _linear(f"{block}.attn.proj", width, width)
        yield from _linear(f"{block}.mlp.fc1", 4 * width, width)
        yield from _linear(f"{block}.mlp.fc2", width, 4 * width)
        for norm in ("norm1", "norm2"):
            yield from _norm(f"{block}.{norm}", width)


def detector(size: DetectorSize) -> Shapes:
    """Weights by mmdet's names."""
    yield from _swin(size)
    dim, head = size.dim, "panoptic_head"
    pixels = f"{head}.pixel_decoder"
    widths = [size.embed * 2**i for i in range(len(size.depths))]
    for i, width in enumerate(reversed(widths[1:])):
        yield f"{pixels}.input_convs.{i}.conv.weight", (dim, width, 1, 1)
        yield f"{pixels}.input_convs.{i}.conv.bias", (dim,)
        yield from _norm(f"{pixels}.input_convs.{i}.gn", dim)
    yield f"{pixels}.level_encoding.weight", (_LEVELS, dim)
    for i in range(size.encoder_layers):
        yield from _pixel_layer(f"{pixels}.encoder.layers.{i}", size)
    for name, columns, side in (("lateral_convs", widths[0], 1), ("output_convs", dim, 3)):
        yield f"{pixels}.{name}.0.conv.weight", (dim, columns, side, side)
        yield from _norm(f"{pixels}.{name}.0.gn", dim)
    yield f"{pixels}.mask_feature.weight", (dim, dim, 1, 1)
    yield f"{pixels}.mask_feature.bias", (dim,)
    for i in range(size.decoder_layers):
        yield from _query_layer(f"{head}.transformer_decoder.layers.{i}", size)
    yield from _norm(f"{head}.transformer_decoder.post_norm", dim)
    for name, rows in (("query_embed", size.queries), ("query_feat", size.queries), ("level_embed", _LEVELS)):
        yield f"{head}.{name}.weight", (rows, dim)
    yield from _linear(f"{head}.cls_embed", size.classes + 1, dim)
    for i in (0, 2, 4):
        yield from _linear(f"{head}.mask_embed.{i}", dim, dim)


def _swin(size: DetectorSize) -> Shapes:
    yield "backbone.patch_embed.projection.weight", (size.embed, 3, 4, 4)
    yield "backbone.patch_embed.projection.bias", (size.embed,)
    yield from _norm("backbone.patch_embed.norm", size.embed)
    for stage, (depth, heads) in enumerate(zip(size.depths, size.heads, strict=True)):
        width = size.embed * 2**stage
        yield from _norm(f"backbone.norm{stage}", width)
        for i in range(depth):
            block = f"backbone.stages.{stage}.blocks.{i}"
            yield f"{block}.attn.w_msa.relative_position_bias_table", ((2 * _WINDOW - 1) ** 2, heads)
            yield f"{block}.attn.w_msa.relative_position_index", (_WINDOW**2, _WINDOW**2)
            yield from _linear(f"{block}.attn.w_msa.qkv", 3 * width, width)
            yield from _linear(f"{block}.attn.w_msa.proj", width, width)
            yield from _linear(f"{block}.ffn.layers.0.0", 4 * width, width)
            yield from _linear(f"{block}.ffn.layers.1", width, 4 * width)
            for norm in ("norm1", "norm2"):
                yield from _norm(f"{block}.{norm}", width)
        if stage < len(size.depths) - 1:
            yield from _norm(f"backbone.stages.{stage}.downsample.norm", 4 * width)
            yield f"backbone.stages.{stage}.downsample.reduction.weight", (2 * width, 4 * width)


def _pixel_layer(layer: str, size: DetectorSize) -> Shapes:
    places = size.decoder_heads * _LEVELS * _POINTS
    yield from _linear(f"{layer}.attentions.0.sampling_offsets", 2 * places, size.dim)
    yield from _linear(f"{layer}.attentions.0.attention_weights", places, size.dim)
    for part in ("value_proj", "output_proj"):
        yield from _linear(f"{layer}.attentions.0.{part}", size.dim, size.dim)
    yield from _feedforward(layer, size.dim, size.encoder_feedforward, norms=2)


def _query_layer(layer: str, size: DetectorSize) -> Shapes:
    for i in range(2):
        attention = f"{layer}.attentions.{i}.attn"
        yield f"{attention}.in_proj_weight", (3 * size.dim, size.dim)
        yield f"{attention}.in_proj_bias", (3 * size.dim,)
        yield from _linear(f"{attention}.out_proj", size.dim, size.dim)
    yield from _feedforward(layer, size.dim, size.decoder_feedforward, norms=3)


def _feedforward(layer: str, dim: int, inner: int, norms: int) -> Shapes:
    yield from _linear(f"{layer}.ffns.0.layers.0.0", inner, dim)
    yield from _linear(f"{layer}.ffns.0.layers.1", dim, inner)
    for i in range(norms):
        yield from _norm(f"{layer}.norms.{i}", dim)


#: Factor of the detector's last layer, by which it is sure enough of some classes that objects are found.
_SURE = 8


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, Any]:
    """Weights of these shapes, half precision as published ones are; matrices scaled by their columns."""
    import math

    import torch

    generator = torch.Generator().manual_seed(seed)
    found = dict[str, Any]()
    for name, shape in shapes:
        if name.endswith(("position_ids", "position_index")):
            found[name] = torch.zeros(shape, dtype=torch.int64)
        elif len(shape) < 2:
            found[name] = torch.ones(shape).half() if name.endswith("weight") else torch.zeros(shape).half()
        else:
            scale = (_SURE if name.endswith("cls_embed.weight") else 1) / math.sqrt(math.prod(shape[1:]))
            found[name] = (torch.randn(shape, generator=generator) * scale).half()
    return found

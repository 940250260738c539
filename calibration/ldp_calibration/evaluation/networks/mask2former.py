"""Mask2Former with a Swin backbone, in transformers' classes, from weights by mmdet's names.

Source: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation"; GenEval's detector.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldp_calibration.evaluation.networks.loading import loaded, odd_shape, thirds, transformers


@dataclass(frozen=True)
class DetectorSize:
    """Size of a detector; by default that of GenEval's (Swin-S).

    Attributes:
        embed, depths, heads: of the backbone; its windows are 7 wide.
        dim, queries: width of pixel and query decoder, and number of queries.
        encoder_layers, decoder_layers: of pixel and query decoder; decoder_heads: of both.
    """

    embed: int = 96
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    dim: int = 256
    queries: int = 100
    encoder_layers: int = 6
    encoder_feedforward: int = 1024
    decoder_layers: int = 9
    decoder_feedforward: int = 2048
    decoder_heads: int = 8
    classes: int = 80


#: Size of GenEval's detector.
SWIN_S = DetectorSize()

_SWIN, _HEAD = "model.pixel_level_module.encoder", "model.transformer_module"
_PIXELS = "model.pixel_level_module.decoder"
#: Parameters that transformers' class has and detection never reads.
_UNUSED = f"{_SWIN}.swin.layernorm"
#: Names by mmdet and by transformers, as patterns; tensors that are split or reordered stand below.
_NAMES = (
    (r"backbone\.patch_embed\.projection\.(.+)", rf"{_SWIN}.swin.embeddings.patch_embeddings.projection.\1"),
    (r"backbone\.patch_embed\.norm\.(.+)", rf"{_SWIN}.swin.embeddings.norm.\1"),
    (r"(backbone\.stages\.\d+\.blocks\.\d+)\.norm1\.(.+)", r"\1.layernorm_before.\2"),
    (r"(backbone\.stages\.\d+\.blocks\.\d+)\.norm2\.(.+)", r"\1.layernorm_after.\2"),
    (r"(backbone\.stages\.\d+\.blocks\.\d+)\.attn\.w_msa\.proj\.(.+)", r"\1.attention.o_proj.\2"),
    (
        r"(backbone\.stages\.\d+\.blocks\.\d+)\.attn\.w_msa\.relative_position_bias_table",
        r"\1.attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"(backbone\.stages\.\d+\.blocks\.\d+)\.ffn\.layers\.0\.0\.(.+)", r"\1.mlp.fc1.\2"),
    (r"(backbone\.stages\.\d+\.blocks\.\d+)\.ffn\.layers\.1\.(.+)", r"\1.mlp.fc2.\2"),
    (r"backbone\.stages\.(.+)", rf"{_SWIN}.swin.encoder.layers.\1"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.conv\.(.+)", rf"{_PIXELS}.input_projections.\1.0.\2"),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.gn\.(.+)", rf"{_PIXELS}.input_projections.\1.1.\2"),
    (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", rf"{_PIXELS}.level_embed"),
    (r"panoptic_head\.pixel_decoder\.mask_feature\.(.+)", rf"{_PIXELS}.mask_projection.\1"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv\.(.+)", rf"{_PIXELS}.adapter_1.0.\1"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn\.(.+)", rf"{_PIXELS}.adapter_1.1.\1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv\.(.+)", rf"{_PIXELS}.layer_1.0.\1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn\.(.+)", rf"{_PIXELS}.layer_1.1.\1"),
    (r"panoptic_head\.pixel_decoder\.(encoder\.layers\.\d+)\.attentions\.0\.(.+)", rf"{_PIXELS}.\1.self_attn.\2"),
    (r"panoptic_head\.pixel_decoder\.(encoder\.layers\.\d+)\.norms\.0\.(.+)", rf"{_PIXELS}.\1.self_attn_layer_norm.\2"),
    (r"panoptic_head\.pixel_decoder\.(encoder\.layers\.\d+)\.norms\.1\.(.+)", rf"{_PIXELS}.\1.final_layer_norm.\2"),
    (r"panoptic_head\.pixel_decoder\.(encoder\.layers\.\d+)\.ffns\.0\.layers\.0\.0\.(.+)", rf"{_PIXELS}.\1.fc1.\2"),
    (r"panoptic_head\.pixel_decoder\.(encoder\.layers\.\d+)\.ffns\.0\.layers\.1\.(.+)", rf"{_PIXELS}.\1.fc2.\2"),
    (r"panoptic_head\.transformer_decoder\.post_norm\.(.+)", rf"{_HEAD}.decoder.layernorm.\1"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d+)\.attentions\.0\.attn\.(.+)", r"\1.cross_attn.\2"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d+)\.attentions\.1\.attn\.(out_proj.+)", r"\1.self_attn.\2"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d+)\.norms\.0\.(.+)", r"\1.cross_attn_layer_norm.\2"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d+)\.norms\.1\.(.+)", r"\1.self_attn_layer_norm.\2"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d+)\.norms\.2\.(.+)", r"\1.final_layer_norm.\2"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d+)\.ffns\.0\.layers\.0\.0\.(.+)", r"\1.fc1.\2"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d+)\.ffns\.0\.layers\.1\.(.+)", r"\1.fc2.\2"),
    (r"panoptic_head\.transformer_decoder\.layers\.(.+)", rf"{_HEAD}.decoder.layers.\1"),
    (r"panoptic_head\.query_embed\.(.+)", rf"{_HEAD}.queries_embedder.\1"),
    (r"panoptic_head\.query_feat\.(.+)", rf"{_HEAD}.queries_features.\1"),
    (r"panoptic_head\.level_embed\.(.+)", rf"{_HEAD}.level_embed.\1"),
    (r"panoptic_head\.cls_embed\.(.+)", r"class_predictor.\1"),
)
#: Tensors of mmdet's files that are computed from sizes.
_COMPUTED = "relative_position_index"


def load_detector(tensors: Mapping[str, Tensor], size: DetectorSize = SWIN_S) -> Any:
    """Detector with weights by mmdet's names.

    Raises:
        ConfigError: transformers is not installed.
        IntegrityError: weights are missing or too many; the message lists them.
    """
    return loaded(lambda: _build(size), dict(_renamed(tensors)), "of GenEval's detector", _UNUSED)


def _build(size: DetectorSize) -> Any:
    library = transformers()
    backbone = library.SwinConfig(
        embed_dim=size.embed,
        depths=list(size.depths),
        num_heads=list(size.heads),
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = library.Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=size.dim,
        mask_feature_size=size.dim,
        hidden_dim=size.dim,
        encoder_layers=size.encoder_layers,
        encoder_feedforward_dim=size.encoder_feedforward,
        decoder_layers=size.decoder_layers + 1,  # transformers counts the query features' own prediction too
        dim_feedforward=size.decoder_feedforward,
        num_attention_heads=size.decoder_heads,
        num_queries=size.queries,
        num_labels=size.classes,
    )
    model = library.Mask2FormerForUniversalSegmentation(config)
    del model.criterion  # of training
    return model


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if name.endswith(_COMPUTED):
            continue
        yield from _converted(name, tensor)


def _converted(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Names and values by transformers of one tensor by mmdet's name; unknown names stay, and are refused later."""
    kind = name.rpartition(".")[2]
    if found := re.fullmatch(r"backbone\.norm(\d)\.(.+)", name):
        yield f"{_SWIN}.hidden_states_norms.stage{int(found[1]) + 1}.{found[2]}", tensor
    elif found := re.fullmatch(r"panoptic_head\.mask_embed\.([024])\.(.+)", name):
        target = f"{_HEAD}.decoder.mask_predictor.mask_embedder.{int(found[1]) // 2}.0.{found[2]}"
        yield target, tensor
    elif found := re.fullmatch(r"backbone\.(stages\.\d+\.blocks\.\d+)\.attn\.w_msa\.qkv\.\w+", name):
        target = f"{_SWIN}.swin.encoder.{found[1].replace('stages', 'layers')}.attention"
        yield from _split(target, kind, thirds(name, tensor))
    elif found := re.fullmatch(r".+\.transformer_decoder\.(layers\.\d+)\.attentions\.1\.attn\.in_proj_\w+", name):
        yield from _split(f"{_HEAD}.decoder.{found[1]}.self_attn", kind.removeprefix("in_proj_"), thirds(name, tensor))
    elif ".downsample." in name:
        yield _new_name(name), _regrouped(name, tensor)
    else:
        yield _new_name(name), tensor


def _split(target: str, kind: str, parts: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    for part, rows in zip("qkv", parts, strict=True):
        yield f"{target}.{part}_proj.{kind}", rows


def _regrouped(name: str, tensor: Tensor) -> Tensor:
    """Last axis from channels of four neighbours (column by column) to neighbours (row by row) of channels."""
    if not tensor.ndim or tensor.shape[-1] % 4:
        raise odd_shape(name, tensor)
    grouped = tensor.reshape(*tensor.shape[:-1], -1, 4)[..., [0, 2, 1, 3]]
    return grouped.transpose(-1, -2).reshape(tensor.shape)


def _new_name(name: str) -> str:
    for pattern, target in _NAMES:
        name = re.sub(f"^{pattern}$", target, name)
    return name


@torch.inference_mode()
def detect(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Class logits [B, queries, classes + 1] and mask logits [B, queries, H/4, W/4] of inputs [B, 3, H, W]."""
    found = model(pixel_values=pixels)
    return found.class_queries_logits, found.masks_queries_logits

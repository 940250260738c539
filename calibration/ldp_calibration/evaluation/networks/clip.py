"""CLIP in transformers' classes, from weights by open_clip's names or by transformers' own.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldp_calibration.evaluation.networks.loading import loaded, thirds, transformers

#: Number of the token that ends a text; tokens of a text.
END, CONTEXT = 49407, 77
#: Token numbers [B, 77] of texts.
Tokens = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class TowerSize:
    """Size of one encoder of CLIP."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True)
class ClipSize:
    """Size of a CLIP; `activation` is "quick_gelu" for OpenAI's weights."""

    embed: int
    vision: TowerSize
    text: TowerSize
    patch: int
    side: int = 224
    activation: str = "gelu"
    vocabulary: int = END + 1


#: CLIP ViT-L/14 by OpenAI, and the ViT-H/14 of HPSv2.
VIT_L = ClipSize(768, TowerSize(1024, 24, 16), TowerSize(768, 12, 12), 14, activation="quick_gelu")
VIT_H = ClipSize(1024, TowerSize(1280, 32, 16), TowerSize(1024, 24, 16), 14)


class ClipNetwork:
    """Encoders of pictures and texts into vectors of unit length.

    Args:
        tokens: turns texts into token numbers.
        device, dtype: where and in what precision it computes; vectors are float32.
    """

    def __init__(self, model: Any, tokens: Tokens, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self._model, self._tokens = model.to(device, dtype), tokens
        self._device, self._dtype = device, dtype

    @property
    def side(self) -> int:
        return self._model.config.vision_config.image_size

    @torch.inference_mode()
    def images(self, inputs: Tensor) -> Tensor:
        """Vectors [B, embed] of inputs [B, 3, side, side]."""
        model = self._model
        seen = model.vision_model(pixel_values=inputs.to(self._device, self._dtype)).pooler_output
        return _unit(model.visual_projection(seen))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors [B, embed] of texts."""
        model = self._model
        read = model.text_model(input_ids=self._tokens(texts).to(self._device)).pooler_output
        return _unit(model.text_projection(read))


def _unit(vectors: Tensor) -> Tensor:
    vectors = vectors.float()
    return vectors / vectors.norm(dim=-1, keepdim=True)


def load_clip(tensors: Mapping[str, Tensor], size: ClipSize, what: str) -> Any:
    """CLIP with weights by open_clip's names, or by transformers'.

    Args:
        what: name of the weights, for messages.

    Raises:
        ConfigError: transformers is not installed.
        IntegrityError: weights are missing or too many; the message lists them.
    """
    renamed = dict(_renamed(tensors)) if any(name.startswith("visual.") for name in tensors) else _own(tensors)
    return loaded(lambda: _build(size), renamed, what)


def _own(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith(".position_ids")}


def _build(size: ClipSize) -> Any:
    library = transformers()
    vision = {
        "hidden_size": size.vision.width,
        "intermediate_size": 4 * size.vision.width,
        "num_hidden_layers": size.vision.layers,
        "num_attention_heads": size.vision.heads,
        "image_size": size.side,
        "patch_size": size.patch,
    }
    text = {
        "hidden_size": size.text.width,
        "intermediate_size": 4 * size.text.width,
        "num_hidden_layers": size.text.layers,
        "num_attention_heads": size.text.heads,
        "vocab_size": size.vocabulary,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": size.vocabulary - 1,
    }
    both = {"hidden_act": size.activation, "layer_norm_eps": 1e-5, "projection_dim": size.embed}
    config = library.CLIPConfig(vision_config=vision | both, text_config=text | both, projection_dim=size.embed)
    return library.CLIPModel(config)


_LAYERS = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("mlp.c_fc", "mlp.fc1"),
    ("mlp.c_proj", "mlp.fc2"),
)
_OUTER = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
#: Matrices that are kept as their transpose.
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and values by transformers; unknown names stay, and are refused later."""
    for name, tensor in tensors.items():
        if name in _TRANSPOSED:
            yield _TRANSPOSED[name], tensor.T
        elif found := re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name):
            layer = f"{'vision' if found[1] else 'text'}_model.encoder.layers.{found[2]}"
            yield from _layer(layer, found[3], tensor)
        else:
            yield _OUTER.get(name, name), tensor


def _layer(layer: str, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if found := re.fullmatch(r"attn\.in_proj_(weight|bias)", name):
        for part, rows in zip("qkv", thirds(f"{layer}.{name}", tensor), strict=True):
            yield f"{layer}.self_attn.{part}_proj.{found[1]}", rows
        return
    for before, after in _LAYERS:
        if name.startswith(f"{before}."):
            name = after + name.removeprefix(before)
            break
    yield f"{layer}.{name}", tensor

"""ImageReward 1.0 in transformers' BLIP classes, from weights by its own names.

Source: Xu et al., "ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ldp_calibration.evaluation.networks.clip import TowerSize
from ldp_calibration.evaluation.networks.loading import loaded, transformers

#: Mean and standard deviation of raw rewards, by which they are normalised.
MEAN, SCALE = 0.16717362830052426, 1.0333394966054072
#: Widths between the text's width and the reward; there is no activation between the layers.
_WIDTHS = (1024, 128, 64, 16, 1)
#: Numbers of the layers among those that training counts (with dropout).
_LAYERS = (0, 2, 4, 6, 7)
#: Parts of the file that a reward has no use of.
_UNUSED = re.compile(r"blip\.(vision_proj|text_proj)\..+|blip\.text_encoder\.embeddings\.position_ids")
#: Token numbers and attention mask [B, 35] of texts.
MaskedTokens = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class RewardSize:
    """Size of a reward network."""

    vision: TowerSize
    text: TowerSize
    vocabulary: int = 30524
    positions: int = 512
    patch: int = 16
    side: int = 224


#: Size of ImageReward 1.0: ViT-L/16 and BERT-base.
VIT_L_BERT = RewardSize(TowerSize(1024, 24, 16), TowerSize(768, 12, 12))


class _Reward(nn.Module):
    """Picture encoder, text encoder that looks at it, and the head of the reward."""

    def __init__(self, size: RewardSize) -> None:
        super().__init__()
        library = transformers()
        self.vision = library.BlipVisionModel(
            library.BlipVisionConfig(
                hidden_size=size.vision.width,
                intermediate_size=4 * size.vision.width,
                num_hidden_layers=size.vision.layers,
                num_attention_heads=size.vision.heads,
                image_size=size.side,
                patch_size=size.patch,
                hidden_act="gelu",
                layer_norm_eps=1e-6,
            )
        )
        self.text = library.BlipTextModel(
            library.BlipTextConfig(
                vocab_size=size.vocabulary,
                hidden_size=size.text.width,
                encoder_hidden_size=size.vision.width,
                intermediate_size=4 * size.text.width,
                num_hidden_layers=size.text.layers,
                num_attention_heads=size.text.heads,
                max_position_embeddings=size.positions,
                hidden_act="gelu",
                layer_norm_eps=1e-12,
                bos_token_id=None,
                eos_token_id=None,
                sep_token_id=None,
                is_decoder=True,  # makes the layers that look at the picture
            ),
            add_pooling_layer=False,
        )
        widths = (size.text.width, *_WIDTHS)
        self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, inputs: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw rewards [B]."""
        seen = self.vision(pixel_values=inputs).last_hidden_state
        read = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.int64, device=seen.device),
            is_decoder=False,  # no causal mask
        ).last_hidden_state
        return self.head(read[:, 0])[:, 0]


class RewardNetwork:
    """Rewards of pictures for their prompts.

    Args:
        tokens: turns texts into token numbers and their attention mask.
        device, dtype: where and in what precision it computes.
    """

    def __init__(
        self, model: Any, tokens: MaskedTokens, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self._model, self._tokens = model.to(device, dtype), tokens
        self._device, self._dtype = device, dtype

    @property
    def side(self) -> int:
        return self._model.vision.config.image_size

    @torch.inference_mode()
    def rewards(self, inputs: Tensor, texts: Sequence[str]) -> list[float]:
        """Normalised rewards of inputs [B, 3, side, side]."""
        ids, mask = (part.to(self._device) for part in self._tokens(texts))
        raw = self._model(inputs.to(self._device, self._dtype), ids, mask)
        return [(value - MEAN) / SCALE for value in raw.float().tolist()]


def load_reward(tensors: Mapping[str, Tensor], size: RewardSize = VIT_L_BERT) -> Any:
    """Reward network with weights by ImageReward's names.

    Raises:
        ConfigError: transformers is not installed.
        IntegrityError: weights are missing or too many; the message lists them.
    """
    return loaded(lambda: _Reward(size), dict(_renamed(tensors)), "of ImageReward")


_NAMES = (
    (r"blip\.visual_encoder\.cls_token", "vision.embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "vision.embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.(.+)", r"vision.embeddings.patch_embedding.\1"),
    (r"blip\.visual_encoder\.norm\.(.+)", r"vision.post_layernorm.\1"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.(.+)", r"vision.encoder.layers.\1.layer_norm\2.\3"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.(.+)", r"vision.encoder.layers.\1.self_attn.qkv.\2"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.(.+)", r"vision.encoder.layers.\1.self_attn.projection.\2"),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.(.+)", r"vision.encoder.layers.\1.mlp.\2"),
    (r"blip\.text_encoder\.(.+)", r"text.\1"),
)


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names by transformers; unknown names stay, and are refused later."""
    for name, tensor in tensors.items():
        if _UNUSED.fullmatch(name):
            continue
        if (found := re.fullmatch(r"mlp\.layers\.(\d+)\.(.+)", name)) and int(found[1]) in _LAYERS:
            yield f"head.{_LAYERS.index(int(found[1]))}.{found[2]}", tensor
            continue
        for pattern, target in _NAMES:
            if found := re.fullmatch(pattern, name):
                name = found.expand(target)
                break
        yield name, tensor

"""VAR's graphs: `prompt`, `blocks` and `decoder`.

The `prompt` graph computes once everything that depends on the class but not on the scale. That is the start token
and the AdaLN modulation of every block. The AdaLN projections, a third of the weights of the larger models, thus leave
the scale loop.
"""

from __future__ import annotations

import re
from typing import cast

import torch
from torch import nn

from ldp_export.graphs.graph import Graph, Precision
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.infinity import KeyValue, attend, modulate
from ldp_export.models.layers import linear
from ldp_export.models.sizes import VarConfig, VarVaeConfig
from ldp_export.models.var import VarBlock, VarTransformer
from ldp_export.models.var_vae import VarVae


def var_prompt_signature(config: VarConfig) -> GraphSignature:
    R, C = Axis.ROWS, config.width
    outputs = [TensorSpec("start", (R, C))]
    outputs += [TensorSpec(f"modulation_{i}", (R, 6, C)) for i in range(config.depth)]
    outputs.append(TensorSpec("head_modulation", (R, 2, C)))
    return GraphSignature("prompt", (TensorSpec("labels", (R,), "int64"),), tuple(outputs))


class VarPromptGraph(Graph):
    """Class labels [R] to the start token and the modulation of each block and of the head.

    The start token includes its scale embedding; `blocks` adds its position like those of all tokens. The AdaLN
    projections have the graph's precision, as in the original's inference.
    """

    ISLANDS = re.compile(r"model\.((class_emb|pos_start|lvl_embed)\b|blocks\.\d+\.ada_gss$)")

    def __init__(self, model: VarTransformer, precision: Precision = "float32") -> None:
        super().__init__(var_prompt_signature(model.config), precision)
        self.model = model

    def uses(self, name: str) -> bool:
        return re.match(r"model\.(blocks\.\d+\.(attn|ffn)|head\.|word_embed|pos_1LC)", name) is None

    def forward(self, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        model, condition = self.model, self.model.class_emb(labels)
        start = condition + model.pos_start[0] + model.lvl_embed.weight[0]
        return start, *model.modulations(condition), model.head_modulation(condition)


def var_placement(model: VarTransformer) -> dict[str, torch.Tensor]:
    """Tensors that `blocks` adds to tokens.

    Returns:
        `level_offsets`: embedding bias plus scale embedding [scales, C]; `positions`: position embeddings [tokens, C].
    """
    offsets = (model.word_embed.bias.float() + model.lvl_embed.weight.float()).detach()
    return {"level_offsets": offsets, "positions": model.pos_1LC[0].detach().float()}


def codebook_constants(vae: VarVae) -> dict[str, torch.Tensor]:
    """Codebook and phi convolutions in float32, which the runtime uses between engine calls."""
    tensors = {
        "codebook": vae.quantize.embedding.weight.detach(),
        "phi_weight": torch.stack([phi.weight.detach() for phi in vae.phis]),
        "phi_bias": torch.stack([phi.bias.detach() for phi in vae.phis if phi.bias is not None]),
    }
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def var_blocks_signature(config: VarConfig, first: int, last: int, precision: Precision = "float32") -> GraphSignature:
    """Inputs and outputs of blocks [first, last), in the graph's order; keys and values have the graph's precision."""
    R, L, P = Axis.ROWS, Axis.TOKENS, Axis.PAST
    H, c, C = config.heads, config.head_dim, config.width
    inputs = (
        [TensorSpec("latents", (R, L, config.channels)), TensorSpec("offset", (R, C)), TensorSpec("positions", (L, C))]
        if first == 0
        else [TensorSpec("hidden", (R, L, C))]
    )
    has_head = last == config.depth
    if has_head:
        inputs.append(TensorSpec("head_modulation", (R, 2, C)))
    outputs = [TensorSpec("logits", (R, L, config.codes)) if has_head else TensorSpec("hidden_out", (R, L, C))]
    for i in range(first, last):
        inputs.append(TensorSpec(f"modulation_{i}", (R, 6, C)))
        for kind in "kv":
            inputs.append(TensorSpec(f"past_{kind}_{i}", (P, R, H, c), precision))
            outputs.append(TensorSpec(f"new_{kind}_{i}", (L, R, H, c), precision))
    name = "blocks" if (first, last) == (0, config.depth) else f"blocks_{first}_{last}"
    return GraphSignature(name, tuple(inputs), tuple(outputs))


class VarBlocksGraph(Graph):
    """Blocks [first, last) of the transformer; `var_blocks_signature` is its calling convention.

    The residual stream, normalisations, modulation, attention's temperatures and the head are float32 in every
    precision.
    """

    ISLANDS = re.compile(r"head\.|blocks\.\d+\.attn\.scale_mul_1H11$")

    def __init__(
        self, model: VarTransformer, first: int = 0, last: int | None = None, precision: Precision = "float32"
    ) -> None:
        config = model.config
        last = config.depth if last is None else last
        super().__init__(var_blocks_signature(config, first, last, precision), precision)
        self.first, self.last, self.eps = first, last, config.norm_eps
        self.blocks = nn.ModuleList(model.layers[first:last])
        if first == 0:
            self.word_embed = model.word_embed
        if last == config.depth:
            self.head = model.head

    def uses(self, name: str) -> bool:
        # The `prompt` graph holds the AdaLN projections; `level_offsets` include the embedding's bias.
        return re.search(r"ada_lin|ada_gss|word_embed\.bias", name) is None

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = dict(zip(self.signature.input_names, tensors, strict=True))
        if self.first == 0:
            # `offset` is the start token at scale 0, and else includes the embedding's bias (see `var_placement`).
            x = linear(inputs["latents"], self.word_embed.weight).float()
            x = x + inputs["offset"][:, None] + inputs["positions"]
        else:
            x = inputs["hidden"]
        caches: list[torch.Tensor] = []
        for i, block in enumerate(cast(list[VarBlock], list(self.blocks)), start=self.first):
            past = (inputs[f"past_k_{i}"], inputs[f"past_v_{i}"])
            x, new_k, new_v = self._block(block, x, inputs[f"modulation_{i}"], past)
            caches += [new_k, new_v]
        if hasattr(self, "head"):
            scale, shift = inputs["head_modulation"].split(1, dim=1)
            x = self.head(modulate(x, scale, shift, self.eps))
        return (x, *caches)

    def _block(
        self, block: VarBlock, x: torch.Tensor, modulation: torch.Tensor, past: KeyValue
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Runs a block like `VarBlock.forward`, but returns only the new K/V."""
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation.split(1, dim=1)
        q, k, v = block.attn.project(modulate(x, scale1, shift1, self.eps), None)  # [R, L, H, c]
        q, k = q.to(v.dtype), k.to(v.dtype)
        new_k, new_v = k.transpose(0, 1), v.transpose(0, 1)  # [L, R, H, c]
        all_k, all_v = torch.cat((past[0], new_k)), torch.cat((past[1], new_v))
        attended = attend(q, all_k.transpose(0, 1), all_v.transpose(0, 1), 1.0)
        x = x + gate1 * block.attn.proj(attended).float()
        return x + gate2 * block.ffn(modulate(x, scale2, shift2, self.eps)).float(), new_k, new_v


def var_decoder_signature(config: VarVaeConfig) -> GraphSignature:
    latent = TensorSpec("latent", (Axis.IMAGES, config.channels, Axis.HEIGHT, Axis.WIDTH))
    return GraphSignature(
        "decoder", (latent,), (TensorSpec("image", (Axis.IMAGES, 3, Axis.IMAGE_HEIGHT, Axis.IMAGE_WIDTH)),)
    )


class VarDecoderGraph(Graph):
    """Latent [B, C, H, W] to an image [B, 3, H*stride, W*stride] in [-1, 1]; normalisations are float32."""

    ISLANDS = re.compile(r".*\bnorm\w*\.(weight|bias)$")

    def __init__(self, vae: VarVae, precision: Precision = "float32") -> None:
        super().__init__(var_decoder_signature(vae.config), precision)
        self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.post_quant_conv(latent)).float().clamp(-1, 1)

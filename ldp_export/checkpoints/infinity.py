"""Reading and writing of Infinity's original file layouts. Loading is strict: every key is used, every weight filled.

The released code loads with `strict=False` and ignores keys that do not fit. Here missing, extra or misshapen keys
raise a `CheckpointError` that lists them. No pickled code runs: `.pth` is read with `weights_only=True`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.checkpoints.files.tensors import State, read_state
from ldp_export.checkpoints.strict import count_numbered, fill_strictly, fitting_model, map_strictly, renamed, shape_of
from ldp_export.models.infinity import InfinityTransformer
from ldp_export.models.infinity_vae import InfinityVae
from ldp_export.models.registry import InfinitySpec
from ldp_export.models.sizes import InfinityConfig, InfinityVaeConfig

#: Keys of the original files whose values are not needed: recomputed, unused or all zeros.
_IGNORED_TRANSFORMER = re.compile(
    r"(.*\.zero_k_bias|lvl_1L|attn_bias_for_masking|Infinity_visible_kvlen|Infinity_invisible_qlen)$"
)


_IGNORED_VAE = re.compile(r"(quantizer|quantize)\.lfq\.mask$")


_CHUNKED = re.compile(r"block_chunks\.([0-9]{1,6})\.module\.([0-9]{1,6})\.(.*)")


def flatten_blocks(state: State) -> State:
    """Renames `block_chunks.{i}.module.{j}.*` to `blocks.{k}.*`; keys that are already flat stay."""
    chunked = {key: m for key in state if (m := _CHUNKED.match(key))}
    if not chunked:
        return dict(state)
    per_chunk = 1 + max(int(m[2]) for m in chunked.values())

    def flat(key: str) -> str:
        m = chunked.get(key)
        return key if m is None else f"blocks.{int(m[1]) * per_chunk + int(m[2])}.{m[3]}"

    return renamed(state.items(), map(flat, state))


def infer_infinity_config(state: State) -> InfinityConfig:
    """Sizes of an Infinity transformer from the shapes of its tensors (original or flat keys)."""
    chunks = count_numbered(state, r"block_chunks\.([0-9]+)\.")
    flat = flatten_blocks(state)
    bits = shape_of(flat, "word_embed.weight", 2)[1]
    text_tokens, text_channels = shape_of(flat, "cfg_uncond", 2)
    if "blocks.0.sa.scale_mul_1H11" in flat:
        heads = flat["blocks.0.sa.scale_mul_1H11"].numel()
    elif "blocks.0.sa.scale_mul" in flat:
        heads = flat["blocks.0.sa.scale_mul"].numel()
    else:
        raise CheckpointError(
            "the checkpoint has no self-attention temperature (sa.scale_mul_1H11)",
            hint="is it the file of an Infinity transformer? give it with --weights, the VAE with --vae",
        )
    try:
        return InfinityConfig(
            depth=count_numbered(flat, r"blocks\.([0-9]+)\."),
            width=shape_of(flat, "pos_start", 3)[2],
            heads=heads,
            ffn=shape_of(flat, "blocks.0.ffn.fc1.weight", 2)[0],
            bits=bits,
            text_channels=text_channels,
            text_tokens=text_tokens,
            levels=shape_of(flat, "lvl_embed.weight", 2)[0],
            pool_heads=shape_of(flat, "text_proj_for_sos.ca.mat_q", 3)[1],
            chunks=max(chunks, 1),
        )
    except ConfigError as error:
        raise CheckpointError(
            f"the tensors' shapes make no Infinity transformer: {error.message}",
            hint="is the file whole, and of an Infinity transformer? the VAE belongs to --vae",
        ) from error


def infer_infinity_vae_config(state: State) -> InfinityVaeConfig:
    """Sizes of a BSQ VAE from the shapes of its tensors (wrapped or plain keys)."""
    flat = unwrap_vae_keys(state)
    widest, bits = shape_of(flat, "decoder.conv_in.weight", 4)[:2]
    base = shape_of(flat, "encoder.conv_in.weight", 4)[0]
    levels = count_numbered(flat, r"encoder\.down\.([0-9]+)\.")
    widths = [shape_of(flat, f"encoder.down.{l}.block.0.conv1.weight", 4)[0] for l in range(levels)]
    if not widths or widths[-1] != widest or any(width % base for width in widths):
        raise CheckpointError(
            f"VAE level widths {widths} do not fit base width {base} and top width {widest}",
            hint="is it the file of an Infinity VAE? give it with --vae, the transformer with --weights",
        )
    try:
        return InfinityVaeConfig(
            bits=bits,
            base_channels=base,
            channel_multipliers=tuple(width // base for width in widths),
            res_blocks=count_numbered(flat, r"encoder\.down\.0\.block\.([0-9]+)\."),
            stride=2 ** sum(f"encoder.down.{l}.downsample.conv.weight" in flat for l in range(levels)),
        )
    except ConfigError as error:
        raise CheckpointError(
            f"the tensors' shapes make no Infinity VAE: {error.message}",
            hint="is the file whole, and of an Infinity VAE? the transformer belongs to --weights",
        ) from error


def unwrap_vae_keys(state: State) -> State:
    """Removes the `.conv.` and `.norm.` wrappers: `x.conv.weight` becomes `x.weight` if x is itself a layer."""
    wrapped = re.compile(r"(.*\.(?:conv\d?|conv_in|conv_out|nin_shortcut|norm\d?|norm_out))\.(?:conv|norm)\.(\w+)$")
    names = (f"{m[1]}.{m[2]}" if (m := wrapped.match(key)) else key for key in state)
    return renamed(state.items(), names)


def load_infinity(path: Path | str, config: InfinityConfig | None = None) -> InfinityTransformer:
    """Loads an Infinity transformer from its original files; its sizes are inferred unless given.

    Raises:
        CheckpointError: a file is unreadable, or its keys or shapes differ from the architecture's (all are listed).
    """
    state = read_state(path, "transformer")
    return build_infinity(state, config, origin=str(path))


def map_infinity(path: Path | str, config: InfinityConfig) -> InfinityTransformer:
    """Opens a transformer like `load_infinity`, but memory-mapped and in the element types of its files.

    Values are read when they are used and never converted. This serves export, and models larger than memory.
    """
    return map_strictly(InfinityTransformer, config, _plain_transformer(read_state(path, "transformer")), str(path))


def build_infinity(
    state: State, config: InfinityConfig | None = None, origin: str = "checkpoint"
) -> InfinityTransformer:
    config = config or infer_infinity_config(state)
    return fill_strictly(InfinityTransformer, config, _plain_transformer(state), origin)


def _plain_transformer(state: State) -> State:
    """Tensors under the reference model's names, without those that are recomputed."""
    kept = {key: value for key, value in flatten_blocks(state).items() if not _IGNORED_TRANSFORMER.match(key)}
    names = (key.replace("sa.scale_mul", "sa.scale_mul_1H11") if key.endswith("sa.scale_mul") else key for key in kept)
    flat = renamed(kept.items(), names)
    for key, value in flat.items():
        if key.endswith("sa.scale_mul_1H11") and value.numel():  # files of FSDP training hold (1, 1, H, 1)
            flat[key] = value.reshape(1, -1, 1, 1)
    return flat


def load_infinity_vae(path: Path | str, config: InfinityVaeConfig | None = None) -> InfinityVae:
    """Loads a BSQ VAE from its original file; its sizes are inferred unless given. Raises `CheckpointError`."""
    return build_infinity_vae(read_state(path, "vae"), config, origin=str(path))


def map_infinity_vae(path: Path | str, config: InfinityVaeConfig) -> InfinityVae:
    """Opens a VAE like `load_infinity_vae`, but memory-mapped; see `map_infinity`."""
    return map_strictly(InfinityVae, config, _plain_vae(read_state(path, "vae")), str(path))


def build_infinity_vae(
    state: State, config: InfinityVaeConfig | None = None, origin: str = "checkpoint"
) -> InfinityVae:
    flat = _plain_vae(state)
    return fill_strictly(InfinityVae, config or infer_infinity_vae_config(flat), flat, origin)


def _plain_vae(state: State) -> State:
    return {k: v for k, v in unwrap_vae_keys(state).items() if not _IGNORED_VAE.match(k)}


def check_files(transformer: Path, vae: Path, config: InfinityConfig, vae_config: InfinityVaeConfig) -> None:
    """Compares keys and shapes of both files with the architecture, before any long work. Raises `CheckpointError`."""
    fitting_model(
        InfinityTransformer, config, _plain_transformer(read_state(transformer, "transformer")), str(transformer)
    )
    fitting_model(InfinityVae, vae_config, _plain_vae(read_state(vae, "vae")), str(vae))


def infinity_spec(name: str, title: str, transformer: InfinityConfig, vae: InfinityVaeConfig) -> InfinitySpec:
    """Specification of an Infinity model; patchify is on if a token has four times the VAE's bits.

    Raises:
        CheckpointError: the transformer and the VAE do not belong together.
    """
    patches = {vae.bits: 1, 4 * vae.bits: 2}
    if transformer.bits not in patches:
        raise CheckpointError(
            f"the transformer draws {transformer.bits} bits a token, which the VAE's {vae.bits} bits do not make "
            "(once, or four times with 2x2 patchify)",
            hint="give the VAE that belongs to the transformer",
        )
    patch = patches[transformer.bits]
    return InfinitySpec(name, title, transformer, vae, patch, licence="not stated")


def original_infinity_state(model: InfinityTransformer) -> State:
    """Tensors of the model under the original key names, with block chunks and zero buffers."""
    config = model.config
    per_chunk = config.depth // config.chunks
    state: State = {}
    for key, value in model.state_dict().items():
        m = re.match(r"blocks\.(\d+)\.(.*)", key)
        if m and config.chunks > 1:
            index = int(m[1])
            key = f"block_chunks.{index // per_chunk}.module.{index % per_chunk}.{m[2]}"
        state[key] = value.detach().contiguous()
        if key.endswith(".v_bias"):
            state[key.removesuffix("v_bias") + "zero_k_bias"] = torch.zeros_like(value)
    return state


def original_infinity_vae_state(model: InfinityVae) -> State:
    """Tensors of the VAE under the original, wrapped key names, with the unused bit-mask buffers."""
    state: State = {}
    for key, value in model.state_dict().items():
        stem, _, kind = key.rpartition(".")
        wrapper = "norm" if re.search(r"norm(\d|_out)?$", stem) else "conv"
        state[f"{stem}.{wrapper}.{kind}"] = value.detach().contiguous()
    mask = 2 ** torch.arange(model.config.bits - 1, -1, -1, dtype=torch.int64)
    return state | {"quantizer.lfq.mask": mask, "quantize.lfq.mask": mask.clone()}

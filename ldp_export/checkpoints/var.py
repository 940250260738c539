"""Reading of VAR's original file layouts, as strict as the loading in `infinity.py`."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.checkpoints.files.tensors import State, read_state
from ldp_export.checkpoints.strict import count_numbered, fill_strictly, fitting_model, map_strictly, renamed, shape_of
from ldp_export.models.registry import VarSpec
from ldp_export.models.sizes import HartConfig, SwittiConfig, VarConfig, VarVaeConfig
from ldp_export.models.var import VarTransformer
from ldp_export.models.var_vae import VarVae

#: Buffers that are recomputed or all zeros.
_IGNORED = re.compile(r"(.*\.zero_k_bias|lvl_1L|attn_bias_for_masking)$")


#: Counts of how often codes were used in training.
_HITS = "quantize.ema_vocab_hit_SV"


_PHIS = "quantize.quant_resi."


#: Beginning of the VAE's keys in a file that also holds its discriminator, and keys of which only training has a use.
_WITH_DISCRIMINATOR = "vae."
_TRAINED = re.compile(r"disc\.|vae\.(decoder2|post_quant_conv2)\.")


def infer_var_config(state: State) -> VarConfig:
    """Sizes of a VAR transformer from its tensors; the sides of the scales come from its buffer `lvl_1L`.

    Raises:
        CheckpointError: tensors are missing, or their shapes fit no VAR model.
    """
    classes, width = shape_of(state, "class_emb.weight", 2)
    if "lvl_1L" not in state:
        raise CheckpointError(
            "the checkpoint lacks 'lvl_1L', from which its scales are read", hint="name the model with --model"
        )
    if "blocks.0.attn.scale_mul_1H11" not in state:
        raise CheckpointError(
            "the checkpoint has no attention temperature (blocks.0.attn.scale_mul_1H11)",
            hint="models trained without attn_l2_norm are not supported; no released one is",
        )
    tokens = tokens_of_scales(state["lvl_1L"])
    grids = tuple(math.isqrt(count) for count in tokens)
    if any(side * side != count or side == 0 for side, count in zip(grids, tokens, strict=True)):
        raise CheckpointError(
            f"'lvl_1L' counts {tokens} tokens per scale, which are no square grids",
            hint="VAR draws squares: is it the file of a VAR transformer?",
        )
    try:
        return VarConfig(
            depth=count_numbered(state, r"blocks\.([0-9]+)\."),
            width=width,
            heads=state["blocks.0.attn.scale_mul_1H11"].numel(),
            ffn=shape_of(state, "blocks.0.ffn.fc1.weight", 2)[0],
            codes=shape_of(state, "head.weight", 2)[0],
            channels=shape_of(state, "word_embed.weight", 2)[1],
            classes=classes - 1,
            grids=grids,
            shared_ada="shared_ada_lin.1.weight" in state,
        )
    except ConfigError as error:
        raise CheckpointError(
            f"the tensors' shapes make no VAR transformer: {error.message}",
            hint="is the file whole, and of a VAR transformer? the VAE belongs to --vae",
        ) from error


def tokens_of_scales(levels: torch.Tensor) -> list[int]:
    """Number of tokens of each scale, from the scale of each token.

    Raises:
        CheckpointError: the values are no scales.
    """
    levels = levels.flatten()
    plain = not (levels.is_complex() or levels.dtype == torch.bool)
    if not plain or not levels.numel() or not bool(((levels >= 0) & (levels < levels.numel())).all()):
        raise CheckpointError(
            f"'lvl_1L' ({str(levels.dtype).removeprefix('torch.')} {list(levels.shape)}) does not number scales",
            hint="the file is damaged; fetch it again",
        )
    return torch.bincount(levels.to(torch.int64)).tolist()


def infer_var_vae_config(state: State) -> VarVaeConfig:
    """Sizes of VAR's VAE from its tensors. Raises `CheckpointError`, see `infer_var_config`."""
    flat = _plain_vae(state)
    codes, channels = shape_of(flat, "quantize.embedding.weight", 2)
    base = shape_of(flat, "encoder.conv_in.weight", 4)[0]
    levels = count_numbered(flat, r"encoder\.down\.([0-9]+)\.")
    widths = [shape_of(flat, f"encoder.down.{l}.block.0.conv1.weight", 4)[0] for l in range(levels)]
    phis = count_numbered(flat, r"quantize\.quant_resi\.qresi_ls\.([0-9]+)\.")
    if not widths or any(width % base for width in widths):
        raise CheckpointError(
            f"VAE level widths {widths} do not fit base width {base}",
            hint="is it the file of a VAR VAE? give it with --vae, the transformer with --weights",
        )
    if not phis:
        raise CheckpointError(
            "the VAE has no phi convolutions (quantize.quant_resi)",
            hint="is it the file of a VAR VAE (vae_ch160v4096z32.pth)? give it with --vae",
        )
    return VarVaeConfig(
        codes=codes,
        channels=channels,
        base_channels=base,
        channel_multipliers=tuple(width // base for width in widths),
        res_blocks=count_numbered(flat, r"encoder\.down\.0\.block\.([0-9]+)\."),
        phis=phis,
    )


def load_var(path: Path | str, config: VarConfig | None = None) -> VarTransformer:
    """Loads a VAR transformer from its original file; its sizes are inferred unless given. Raises `CheckpointError`."""
    state = read_state(path, "transformer")
    return fill_strictly(VarTransformer, config or infer_var_config(state), _plain_transformer(state), str(path))


def load_var_vae(path: Path | str, config: VarVaeConfig | None = None) -> VarVae:
    """Loads VAR's VAE from its original file; its sizes are inferred unless given. Raises `CheckpointError`."""
    state = read_state(path, "vae")
    return fill_strictly(VarVae, config or infer_var_vae_config(state), _plain_vae(state), str(path))


def map_var(path: Path | str, config: VarConfig) -> VarTransformer:
    """Opens a transformer like `load_var`, but memory-mapped and in the element types of its file."""
    return map_strictly(VarTransformer, config, _plain_transformer(read_state(path, "transformer")), str(path))


def map_var_vae(path: Path | str, config: VarVaeConfig) -> VarVae:
    """Opens a VAE like `load_var_vae`, but memory-mapped; see `map_var`."""
    return map_strictly(VarVae, config, _plain_vae(read_state(path, "vae")), str(path))


def check_var_files(transformer: Path, vae: Path, config: VarConfig, vae_config: VarVaeConfig) -> None:
    """Compares keys, shapes and scales of both files with the architecture, before any long work.

    Raises:
        CheckpointError: a file does not fit the architecture.
    """
    state = read_state(transformer, "transformer")
    fitting_model(VarTransformer, config, _plain_transformer(state), str(transformer))
    if "lvl_1L" in state:
        tokens, expected = tokens_of_scales(state["lvl_1L"]), list(config.schedule.tokens)
        if tokens != expected:
            raise CheckpointError(
                f"{transformer} has scales of {tokens} tokens, the model has {expected}",
                hint="leave --model out: the sizes are then read from the file",
            )
    check_vae_file(vae, vae_config)


def check_vae_file(path: Path, config: VarVaeConfig) -> None:
    """Compares keys and shapes of a VAE's file with its architecture. Raises `CheckpointError`."""
    fitting_model(VarVae, config, _plain_vae(read_state(path, "vae")), str(path))


def _plain_transformer(state: State) -> State:
    return {key: value for key, value in state.items() if not _IGNORED.match(key)}


def _plain_vae(state: State) -> State:
    """Tensors under the reference model's names.

    The original has other names if all scales share one phi, or if each scale has its own. HART's file holds
    the VAE under `vae.`, beside the discriminator of its training and perhaps a second decoder. Neither of the two
    draws pictures.
    """
    if "vae.quantize.embedding.weight" in state:
        state = {
            key.removeprefix(_WITH_DISCRIMINATOR): value for key, value in state.items() if not _TRAINED.match(key)
        }
    kept = {key: value for key, value in state.items() if key != _HITS}
    return renamed(kept.items(), map(_plain_phi, kept))


def _plain_phi(key: str) -> str:
    rest = key.removeprefix(_PHIS)
    if rest == key or rest.startswith("qresi_ls."):
        return key
    return f"{_PHIS}qresi_ls." + (f"0.{rest.removeprefix('qresi.')}" if rest.startswith("qresi.") else rest)


def holds_var(state: State) -> bool:
    """True for the tensors of a VAR transformer: no other family has a table of classes."""
    return "class_emb.weight" in state


def var_spec(name: str, title: str, transformer: VarConfig, vae: VarVaeConfig) -> VarSpec:
    """Specification of a VAR model.

    Raises:
        CheckpointError: the transformer and the VAE do not belong together.
    """
    check_codebooks(transformer, vae)
    size = f"{transformer.grids[-1] * vae.stride}px"
    return VarSpec(name, title, transformer, vae, size=size, top_p=0.95, licence="not stated")


def check_codebooks(transformer: VarConfig | SwittiConfig | HartConfig, vae: VarVaeConfig) -> None:
    """Raises CheckpointError if a transformer and a VAE have codebooks of different sizes."""
    ours, theirs = ((c.codes, c.channels) for c in (transformer, vae))
    if ours != theirs:
        raise CheckpointError(
            f"the transformer draws from {ours[0]} codes of {ours[1]} channels, the VAE has {theirs[0]} of {theirs[1]}",
            hint="give the VAE that belongs to the transformer",
        )


def original_var_state(model: VarTransformer) -> State:
    """Parameters, zero key biases, and the buffers `lvl_1L` (its values: loaders read the scales) and training mask."""
    state: State = {}
    for key, value in model.state_dict().items():
        state[key] = value
        if key.endswith(".v_bias"):
            state[key.removesuffix("v_bias") + "zero_k_bias"] = torch.empty_like(value)
    tokens = torch.tensor(model.config.schedule.tokens)
    total = model.config.schedule.total_tokens
    state["lvl_1L"] = torch.repeat_interleave(torch.arange(len(tokens)), tokens)[None]
    state["attn_bias_for_masking"] = torch.empty(1, 1, total, total, device="meta")
    return state


def original_var_vae_state(model: VarVae) -> State:
    """Parameters of the VAE, and how often training met each code at each scale of the released grids."""
    codes, scales = model.quantize.embedding.weight.shape[0], len(VarConfig(1, 1, 1, 1).grids)
    return model.state_dict() | {_HITS: torch.empty(scales, codes, device="meta")}

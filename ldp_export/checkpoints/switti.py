"""Reading of Switti's released file layout, as strict as the loading in `infinity.py`; its VAE's files are VAR's.

The file holds neither the number of heads nor the rotary settings. They stand in the `config.json` beside it, or have
the released values (heads of 64 channels).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.checkpoints.files.parts import CONFIG_FILE, settings_beside
from ldp_export.checkpoints.files.tensors import State, read_state
from ldp_export.checkpoints.strict import count_numbered, fill_strictly, fitting_model, map_strictly, shape_of
from ldp_export.checkpoints.var import check_codebooks, check_vae_file, tokens_of_scales
from ldp_export.models.registry import SwittiSpec
from ldp_export.models.sizes import SwittiConfig, VarVaeConfig
from ldp_export.models.switti import SwittiTransformer

#: Buffers: the scale of each token, and the mask of training, from which the kind of attention is read.
_LEVELS, _MASK = "lvl_1L", "attn_bias_for_masking"
_HEAD_CHANNELS = 64
_LOOK = "is it the model.safetensors of a Switti repository? the VAE belongs to --vae"


def holds_switti(state: State) -> bool:
    """True for the tensors of a Switti transformer: no other family pools its text by one product."""
    return "text_pooler.weight" in state and "blocks.0.attention_y_norm.weight" in state


def infer_switti_config(state: State, path: Path | None = None) -> SwittiConfig:
    """Sizes of a Switti transformer from its tensors, and from the `config.json` beside its file if there is one.

    Raises:
        CheckpointError: tensors are missing, or their shapes fit no Switti model.
    """
    settings = settings_beside(path)
    _refuse_variants(state, settings)
    width = shape_of(state, "pos_start", 3)[2]
    try:
        return SwittiConfig(
            depth=count_numbered(state, r"blocks\.([0-9]+)\."),
            width=width,
            heads=_whole(settings, "num_heads", max(1, width // _HEAD_CHANNELS)),
            ffn=shape_of(state, "blocks.0.ffn.up_proj.weight", 2)[0],
            codes=shape_of(state, "head.weight", 2)[0],
            channels=shape_of(state, "word_embed.weight", 2)[1],
            text_channels=shape_of(state, "blocks.0.attention_y_norm.weight", 1)[0],
            pooled_channels=shape_of(state, "text_pooler.weight", 2)[1],
            grids=_grids(state),
            keeps_past=_keeps_past(state, settings),
            rope_theta=float(_whole(settings, "rope_theta", 10000)),
            rope_size=_whole(settings, "rope_size", 128),
        )
    except ConfigError as error:
        raise CheckpointError(f"the tensors' shapes make no Switti transformer: {error.message}", hint=_LOOK) from error


def _grids(state: State) -> tuple[int, ...]:
    if _LEVELS not in state:
        raise CheckpointError(f"the checkpoint lacks {_LEVELS!r}, from which its scales are read", hint=_LOOK)
    tokens = tokens_of_scales(state[_LEVELS])
    grids = tuple(math.isqrt(count) for count in tokens)
    if any(side * side != count or side == 0 for side, count in zip(grids, tokens, strict=True)):
        raise CheckpointError(f"{_LEVELS!r} counts {tokens} tokens per scale, which are no square grids", hint=_LOOK)
    return grids


def _whole(settings: Mapping[str, Any], name: str, default: int) -> int:
    value = settings.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 0 < value < 2**31:
        raise CheckpointError(f"{CONFIG_FILE} says {name} is {value!r}, expected a whole number", hint="fetch it again")
    return int(value)


def _refuse_variants(state: State, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError for variants of the original code that were never released."""
    odd = [name for name in ("rope", "use_swiglu_ffn", "use_crop_cond") if settings.get(name, True) is not True]
    odd += [key for key in ("pos_1LC", "blocks.0.ffn.fc1.weight") if key in state]
    if odd:
        raise CheckpointError(
            f"this Switti differs from the released ones in {', '.join(odd)}, which is not supported",
            hint="released are models with rotary positions, SwiGLU and crop conditions",
        )


def _keeps_past(state: State, settings: Mapping[str, Any]) -> bool:
    """True if scales see earlier ones: where the training mask lets the second token see the first."""
    mask, said = state.get(_MASK), settings.get("use_ar")
    if mask is not None and mask.dim() == 4 and min(mask.shape[-2:]) > 1:
        seen = float(mask[0, 0, 1, 0]) == 0
        if said is not None and said is not seen:
            raise CheckpointError(
                f"{CONFIG_FILE} says use_ar is {said!r}, the training mask says {seen}",
                hint="the two files are of different models; fetch both again",
            )
        return seen
    if not isinstance(said, bool):
        raise CheckpointError(
            f"neither {_MASK!r} nor use_ar in {CONFIG_FILE} says whether scales see earlier ones",
            hint="put the config.json of its repository beside the file",
        )
    return said


def load_switti(path: Path | str, config: SwittiConfig | None = None) -> SwittiTransformer:
    """Loads a transformer from its original file; its sizes are inferred unless given. Raises `CheckpointError`."""
    state = read_state(path, "transformer")
    return fill_strictly(SwittiTransformer, config or infer_switti_config(state, Path(path)), _plain(state), str(path))


def map_switti(path: Path | str, config: SwittiConfig) -> SwittiTransformer:
    """Opens a transformer like `load_switti`, but memory-mapped and in the element types of its file."""
    return map_strictly(SwittiTransformer, config, _plain(read_state(path, "transformer")), str(path))


def check_switti_files(transformer: Path, vae: Path, config: SwittiConfig, vae_config: VarVaeConfig) -> None:
    """Compares keys, shapes and scales of both files with the architecture, before any long work.

    Raises:
        CheckpointError: a file does not fit the architecture.
    """
    state = read_state(transformer, "transformer")
    fitting_model(SwittiTransformer, config, _plain(state), str(transformer))
    if _LEVELS in state and _grids(state) != config.grids:
        raise CheckpointError(
            f"{transformer} has grids of sides {_grids(state)}, the model has {config.grids}",
            hint="leave --model out: the sizes are then read from the file",
        )
    check_vae_file(vae, vae_config)


def _plain(state: State) -> State:
    return {key: value for key, value in state.items() if key not in (_LEVELS, _MASK)}


def switti_spec(name: str, title: str, transformer: SwittiConfig, vae: VarVaeConfig) -> SwittiSpec:
    """Specification of a Switti model, with the settings that the original's demos use.

    Raises:
        CheckpointError: the transformer and the VAE do not belong together.
    """
    check_codebooks(transformer, vae)
    size = f"{transformer.grids[-1] * vae.stride}px"
    return SwittiSpec(name, title, transformer, vae, size=size, licence="not stated")


def original_switti_state(model: SwittiTransformer) -> State:
    """Parameters and buffers of the released file: `lvl_1L`, and the training mask as far as `_keeps_past` reads it.

    One number stands for the whole mask, whose 89 million at 1024 pixels no loader needs.
    """
    tokens, total = torch.tensor(model.config.schedule.tokens), model.config.schedule.total_tokens
    level = torch.repeat_interleave(torch.arange(len(tokens)), tokens)[None]
    # The original hides by -inf, which files of numbers that are to be computed with may not hold.
    mask = torch.tensor(0.0 if model.config.keeps_past else torch.finfo(torch.float32).min, device="cpu")
    return model.state_dict() | {_LEVELS: level, _MASK: mask.expand(1, 1, total, total)}

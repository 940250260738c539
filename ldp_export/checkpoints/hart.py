"""Reading of HART's released file layout, as strict as the loading in `infinity.py`; its VAE's files are VAR's.

The file holds neither the number of heads nor the steps of the residual head. They stand in the `config.json` beside
it, or have the released values. Weights come with averages of training, `ema_model.bin`, which the original draws with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.checkpoints.files.parts import settings_beside
from ldp_export.checkpoints.files.tensors import State, read_state
from ldp_export.checkpoints.strict import count_numbered, fill_strictly, fitting_model, map_strictly, shape_of
from ldp_export.checkpoints.var import check_codebooks, check_vae_file, tokens_of_scales
from ldp_export.models.hart import HartTransformer
from ldp_export.models.registry import HartSpec
from ldp_export.models.sizes import HartConfig, VarVaeConfig

#: Buffer with the scale of each row, those of the text first.
_LEVELS = "lvl_1L"
#: Buffers that are recomputed or all zeros: the mask alone, which only training applies, is half of the file.
_IGNORED = re.compile(rf"(.*\.zero_k_bias|{_LEVELS}|attn_bias_for_masking)$")
_HEAD_CHANNELS = 64
#: Marks of variants that the original's code knows and that were not released, by key and by setting.
_OTHER_KEYS = re.compile(
    r"pos_1LC|pos_start|shared_ada_lin|scale_shift_table|lvl_embed\.weight$|blocks\.0\.(ada_lin|ada_gss|cross_attn|attn\.scale_mul_1H11)"
)
_RELEASED = {
    "attn_type": "llama",
    "mlp_type": "llama",
    "disable_aln": True,
    "shared_aln": False,
    "attn_l2_norm": False,
    "use_cross_attn": False,
    "use_timestep_embed": True,
    "use_context_norm": True,
    "sep_aln_pooling_mode": "max",
    "sampler": "iddpm",
}
_LOOK = "is it ema_model.bin or the weights of a HART repository's llm folder? the VAE belongs to --vae"


def holds_hart(state: State) -> bool:
    """True for the tensors of a HART transformer: no other family has a head of residuals."""
    return "diffloss.net.input_proj.weight" in state and "context_embed.weight" in state


def infer_hart_config(state: State, path: Path | None = None) -> HartConfig:
    """Sizes of a HART transformer from its tensors, and from the `config.json` beside its file if there is one.

    Raises:
        CheckpointError: tensors are missing, or their shapes fit no HART model.
    """
    settings = settings_beside(path)
    _refuse_variants(state, settings)
    width, text_channels = shape_of(state, "context_embed.weight", 2)
    grids, text_tokens = _grids(state)
    _compare(settings, "patch_nums", list(grids))
    _compare(settings, "context_token", text_tokens)
    try:
        return HartConfig(
            depth=count_numbered(state, r"blocks\.([0-9]+)\."),
            width=width,
            heads=_whole(settings, "num_heads", max(1, width // _HEAD_CHANNELS)),
            ffn=shape_of(state, "blocks.0.ffn.gate_proj.weight", 2)[0],
            codes=shape_of(state, "head.weight", 2)[0],
            channels=shape_of(state, "word_embed.weight", 2)[1],
            text_channels=text_channels,
            text_tokens=text_tokens,
            grids=grids,
            residual_width=shape_of(state, "diffloss.net.input_proj.weight", 2)[0],
            residual_depth=count_numbered(state, r"diffloss\.net\.res_blocks\.([0-9]+)\."),
            residual_steps=_whole(settings, "num_sampling_steps", 8),
            norm_eps=_eps(settings),
        )
    except ConfigError as error:
        raise CheckpointError(f"the tensors' shapes make no HART transformer: {error.message}", hint=_LOOK) from error


def _grids(state: State) -> tuple[tuple[int, ...], int]:
    """Sides of the scales, and rows of the text that stands in place of the first one."""
    if _LEVELS not in state:
        raise CheckpointError(f"the checkpoint lacks {_LEVELS!r}, from which its scales are read", hint=_LOOK)
    text, *tokens = tokens_of_scales(state[_LEVELS])
    grids = tuple(math.isqrt(count) for count in tokens)
    if not grids or any(side * side != count or side == 0 for side, count in zip(grids, tokens, strict=True)):
        raise CheckpointError(f"{_LEVELS!r} counts {tokens} tokens per scale, which are no square grids", hint=_LOOK)
    return (1, *grids), text


def _whole(settings: Mapping[str, Any], name: str, default: int) -> int:
    value = settings.get(name, default)
    value = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise CheckpointError(f"config.json says {name} is {value!r}, expected a whole number", hint="fetch it again")
    return value


def _eps(settings: Mapping[str, Any]) -> float:
    value = settings.get("norm_eps", HartConfig.norm_eps)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise CheckpointError(f"config.json says norm_eps is {value!r}, expected a small number", hint="fetch it again")
    return float(value)


def _compare(settings: Mapping[str, Any], name: str, found: object) -> None:
    if name in settings and settings[name] != found:
        raise CheckpointError(
            f"config.json says {name} is {settings[name]!r}, the tensors say {found!r}",
            hint="the two files are of different models; fetch both again",
        )


def _refuse_variants(state: State, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError for variants of the original code that were never released."""
    odd = [f"{name} {settings[name]!r}" for name, value in _RELEASED.items() if settings.get(name, value) != value]
    odd += [key for key in state if _OTHER_KEYS.match(key)]
    if odd:
        raise CheckpointError(
            f"this HART differs from the released one in {', '.join(odd[:5])}, which is not supported",
            hint="released is the model without AdaLN in its blocks, with RMS norms, SwiGLU and rotary positions",
        )


def load_hart(path: Path | str, config: HartConfig | None = None) -> HartTransformer:
    """Loads a transformer from its original file; its sizes are inferred unless given. Raises `CheckpointError`."""
    state = read_state(path, "transformer")
    return fill_strictly(HartTransformer, config or infer_hart_config(state, Path(path)), _plain(state), str(path))


def map_hart(path: Path | str, config: HartConfig) -> HartTransformer:
    """Opens a transformer like `load_hart`, but memory-mapped and in the element types of its file."""
    return map_strictly(HartTransformer, config, _plain(read_state(path, "transformer")), str(path))


def check_hart_files(transformer: Path, vae: Path, config: HartConfig, vae_config: VarVaeConfig) -> None:
    """Compares keys, shapes and scales of both files with the architecture, before any long work.

    Raises:
        CheckpointError: a file does not fit the architecture.
    """
    state = read_state(transformer, "transformer")
    _refuse_variants(state, settings_beside(transformer))
    fitting_model(HartTransformer, config, _plain(state), str(transformer))
    if _LEVELS in state and _grids(state) != (config.grids, config.text_tokens):
        grids, text = _grids(state)
        raise CheckpointError(
            f"{transformer} has grids of sides {grids} behind {text} rows of text, the model has {config.grids} "
            f"behind {config.text_tokens}",
            hint="leave --model out: the sizes are then read from the file",
        )
    check_vae_file(vae, vae_config)


def _plain(state: State) -> State:
    return {key: value for key, value in state.items() if not _IGNORED.match(key)}


def hart_spec(name: str, title: str, transformer: HartConfig, vae: VarVaeConfig) -> HartSpec:
    """Specification of a HART model, with the settings that the original's demos use.

    Raises:
        CheckpointError: the transformer and the VAE do not belong together.
    """
    check_codebooks(transformer, vae)
    size = f"{transformer.grids[-1] * vae.stride}px"
    return HartSpec(name, title, transformer, vae, size=size, licence="not stated")


def original_hart_state(model: HartTransformer) -> State:
    """Parameters, zero key biases, and the buffers `lvl_1L` (its values) and training mask."""
    state: State = {}
    for key, value in model.state_dict().items():
        state[key] = value
        if key.endswith(".v_bias"):
            state[key.removesuffix("v_bias") + "zero_k_bias"] = torch.empty_like(value)
    tokens = torch.tensor((model.config.text_tokens, *model.config.schedule.tokens[1:]))
    total = int(tokens.sum())
    state[_LEVELS] = torch.repeat_interleave(torch.arange(len(tokens)), tokens)[None]
    state["attn_bias_for_masking"] = torch.empty(1, 1, total, total, device="meta")
    return state

"""Inference of a model's family and sizes from the shapes of the tensors in its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ldp_runtime.errors import CheckpointError

from ldp_export.checkpoints.infinity import infer_infinity_config, infer_infinity_vae_config
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.tensor_files import State, read_state
from ldp_export.checkpoints.var import infer_var_config, infer_var_vae_config
from ldp_export.models.infinity import InfinityConfig
from ldp_export.models.infinity_vae import InfinityVaeConfig
from ldp_export.models.registry import MODELS, InfinitySpec, VarSpec
from ldp_export.models.var import VarConfig
from ldp_export.models.var_vae import VarVaeConfig

Config = TypeVar("Config")


def check_name(spec: InfinitySpec | VarSpec, sources: Sources) -> None:
    """Compares the sizes in a checkpoint's headers with those of the named model, before any work.

    Raises:
        CheckpointError: the checkpoint is of another model; the error names it if the registry knows it.
    """
    config = _sizes_in(sources.transformer, _config)
    if _sizes(config) == _sizes(spec.transformer):
        return
    names = [name for name, known in MODELS.items() if known.transformer == config]
    is_of = f"that is {' or '.join(names)}; " if names else ""
    raise CheckpointError(
        f"{sources.transformer} is not {spec.name}: it has {_sizes(config)}; {is_of}{spec.name} has "
        f"{_sizes(spec.transformer)}",
        hint="give the file that belongs to the name, or leave --model out: sizes are then read from the file",
    )


def _sizes(config: InfinityConfig | VarConfig) -> str:
    if isinstance(config, VarConfig):
        grids = " ".join(map(str, config.grids))
        return f"{config.depth} blocks of width {config.width}, {config.codes} codes, and grids of sides {grids}"
    return f"{config.depth} blocks of width {config.width} and {config.bits} bits a token"


def _config(state: State) -> InfinityConfig | VarConfig:
    """Sizes of a transformer of either family; only VAR has a table of classes."""
    return infer_var_config(state) if "class_emb.weight" in state else infer_infinity_config(state)


def infer_spec(sources: Sources, name: str = "custom") -> InfinitySpec | VarSpec:
    """Infers family and architecture from the files alone.

    Raises:
        CheckpointError: files of no family, or a transformer and a VAE that do not belong together.
    """
    config, title = _sizes_in(sources.transformer, _config), f"from {sources.transformer.name}"
    if isinstance(config, VarConfig):
        return _var_spec(name, title, config, _sizes_in(sources.vae, infer_var_vae_config))
    return _infinity_spec(name, title, config, _sizes_in(sources.vae, infer_infinity_vae_config))


def _sizes_in(path: Path, infer: Callable[[State], Config]) -> Config:
    """Sizes inferred from a file's tensors; errors name the file."""
    state = read_state(path)
    try:
        return infer(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from error


def _var_spec(name: str, title: str, transformer: VarConfig, vae: VarVaeConfig) -> VarSpec:
    ours, theirs = ((c.codes, c.channels) for c in (transformer, vae))
    if ours != theirs:
        raise CheckpointError(
            f"the transformer draws from {ours[0]} codes of {ours[1]} channels, the VAE has {theirs[0]} of {theirs[1]}",
            hint="give the VAE that belongs to the transformer",
        )
    size = f"{transformer.grids[-1] * vae.stride}px"
    return VarSpec(name, title, transformer, vae, size=size, top_p=0.95, licence="not stated")


def _infinity_spec(name: str, title: str, transformer: InfinityConfig, vae: InfinityVaeConfig) -> InfinitySpec:
    """Specification of an Infinity model; patchify is on if a token has four times the VAE's bits."""
    patches = {vae.bits: 1, 4 * vae.bits: 2}
    if transformer.bits not in patches:
        raise CheckpointError(
            f"the transformer draws {transformer.bits} bits a token, which the VAE's {vae.bits} bits do not make "
            "(once, or four times with 2x2 patchify)",
            hint="give the VAE that belongs to the transformer",
        )
    patch = patches[transformer.bits]
    return InfinitySpec(name, title, transformer, vae, patch, licence="not stated")

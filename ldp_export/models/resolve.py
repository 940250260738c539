"""From what a user names (a registry name, files, or both) to an architecture and its files."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.hub.fetch import FetchPlan, plan_fetch
from ldp_export.hub.local import local_files
from ldp_export.models.bsq_vae import VaeConfig
from ldp_export.models.checkpoints import infer_transformer_config, infer_vae_config
from ldp_export.models.infinity import InfinityConfig
from ldp_export.models.registry import DEFAULT_MODEL, MODELS, ModelSpec, VarSpec, find_model
from ldp_export.models.sources import Sources, find_sources
from ldp_export.models.state_files import State, read_state
from ldp_export.models.var import VarConfig
from ldp_export.models.var_checkpoints import infer_var_config, infer_vq_vae_config
from ldp_export.models.vq_vae import VqVaeConfig

Config = TypeVar("Config")


def resolve_model(
    name: str | None = None,
    weights: Path | None = None,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    local_dir: Path | None = None,
) -> tuple[ModelSpec | VarSpec, Sources]:
    """The model and its files, which are here; files without a name give a model whose sizes are read from them.

    Raises:
        ConfigError: unknown name, parts missing, or impossible defaults. CheckpointError: files that are no such model.
    """
    if name is None and (weights is not None or vae is not None):
        sources = find_sources(find_model(DEFAULT_MODEL), weights, vae, text_encoder, local_dir)
        spec = infer_spec(sources)
    else:
        spec = find_model(name or DEFAULT_MODEL)
        sources = find_sources(spec, weights, vae, text_encoder, local_dir)
        if not spec.embedded:
            check_name(spec, sources)
    return with_defaults(spec, guidance, temperature), sources


def with_defaults(spec: ModelSpec | VarSpec, guidance: float | None, temperature: float | None) -> ModelSpec | VarSpec:
    """The model with other defaults; what every request would refuse is refused here."""
    if guidance is not None:
        if not math.isfinite(guidance):
            raise ConfigError(f"guidance must be finite, got {guidance}")
        spec = replace(spec, guidance=guidance)
    if temperature is not None:
        if not 0 < temperature < math.inf:
            raise ConfigError(f"temperature must be positive, got {temperature}")
        spec = replace(spec, temperature=temperature)
    return spec


def pending_fetch(
    name: str | None,
    weights: Path | None = None,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    local_dir: Path | None = None,
) -> FetchPlan | None:
    """What would have to be downloaded before a build; None where everything is here.

    Raises:
        ConfigError: unknown name. HubError, CheckpointError, CapacityError: see `plan_fetch`.
    """
    spec = find_model(name or DEFAULT_MODEL)
    if weights or vae or local_dir or spec.hub is None:
        return None
    if local_files(spec, text_encoder=text_encoder is None).state == "complete":
        return None
    return plan_fetch(spec, text_encoder=text_encoder is None)


def check_name(spec: ModelSpec | VarSpec, sources: Sources) -> None:
    """Compares the sizes in a checkpoint's headers with those of its name, before any work.

    Raises:
        CheckpointError: it is another model's, which is named where the registry knows it.
    """
    found = _sizes_in(sources.transformer, _config)
    if _sizes(found) == _sizes(spec.transformer):
        return
    names = [name for name, known in MODELS.items() if known.transformer == found]
    is_of = f"that is {' or '.join(names)}; " if names else ""
    raise CheckpointError(
        f"{sources.transformer} is not {spec.name}: it has {_sizes(found)}; {is_of}{spec.name} has "
        f"{_sizes(spec.transformer)}",
        hint="give the file that belongs to the name, or leave --model out: sizes are then read from the file",
    )


def _sizes(config: InfinityConfig | VarConfig) -> str:
    if isinstance(config, VarConfig):
        grids = " ".join(map(str, config.grids))
        return f"{config.depth} blocks of width {config.width}, {config.codes} codes, and grids of sides {grids}"
    return f"{config.depth} blocks of width {config.width} and {config.bits} bits a token"


def _config(state: State) -> InfinityConfig | VarConfig:
    """Sizes of a transformer of either family, told apart by their tables of classes or of unconditional text."""
    return infer_var_config(state) if "class_emb.weight" in state else infer_transformer_config(state)


def infer_spec(sources: Sources, name: str = "custom") -> ModelSpec | VarSpec:
    """Family and architecture from the files alone.

    Raises:
        CheckpointError: files of no family, or a transformer and a VAE that do not belong together.
    """
    found, title = _sizes_in(sources.transformer, _config), f"from {sources.transformer.name}"
    if isinstance(found, VarConfig):
        return _class_spec(name, title, found, _sizes_in(sources.vae, infer_vq_vae_config))
    return _text_spec(name, title, found, _sizes_in(sources.vae, infer_vae_config))


def _sizes_in(path: Path, infer: Callable[[State], Config]) -> Config:
    """What a file's tensors say of its sizes; an error names the file."""
    state = read_state(path)
    try:
        return infer(state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from error


def _class_spec(name: str, title: str, transformer: VarConfig, vae: VqVaeConfig) -> VarSpec:
    ours, theirs = ((c.codes, c.channels) for c in (transformer, vae))
    if ours != theirs:
        raise CheckpointError(
            f"the transformer draws from {ours[0]} codes of {ours[1]} channels, the VAE has {theirs[0]} of {theirs[1]}",
            hint="give the VAE that belongs to the transformer",
        )
    size = f"{transformer.grids[-1] * vae.stride}px"
    return VarSpec(name, title, transformer, vae, size=size, top_p=0.95, licence="not stated")


def _text_spec(name: str, title: str, transformer: InfinityConfig, vae: VaeConfig) -> ModelSpec:
    """Patchify is on where a token has four times the VAE's bits."""
    patches = {vae.bits: 1, 4 * vae.bits: 2}
    if transformer.bits not in patches:
        raise CheckpointError(
            f"the transformer draws {transformer.bits} bits a token, which the VAE's {vae.bits} bits do not make "
            "(once, or four times with 2x2 patchify)",
            hint="give the VAE that belongs to the transformer",
        )
    patch = patches[transformer.bits]
    return ModelSpec(name, title, transformer, vae, patch, licence="not stated")

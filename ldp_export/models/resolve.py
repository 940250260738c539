"""From what a user names (a registry name, files, or both) to an architecture and its files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.hub.fetch import FetchPlan, plan_fetch
from ldp_export.hub.local import local_files
from ldp_export.models.checkpoints import infer_transformer_config, infer_vae_config
from ldp_export.models.infinity import InfinityConfig
from ldp_export.models.registry import DEFAULT_MODEL, MODELS, ModelSpec, find_model
from ldp_export.models.sources import Sources, find_sources
from ldp_export.models.state_files import read_state


def resolve_model(
    name: str | None = None,
    weights: Path | None = None,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    local_dir: Path | None = None,
) -> tuple[ModelSpec, Sources]:
    """The model and its files, fetched where missing; files without a name give a model whose sizes are read from them.

    Raises:
        ConfigError: unknown name, or parts missing. CheckpointError: files that are no such model.
        HubError, IntegrityError, CapacityError: see `ldp_export.hub.fetch`.
    """
    if name is None and (weights is not None or vae is not None):
        sources = find_sources(_known(DEFAULT_MODEL), weights, vae, text_encoder)
        spec = infer_spec(sources)
    else:
        spec = _known(name or DEFAULT_MODEL)
        sources = find_sources(spec, weights, vae, text_encoder, local_dir)
        if not spec.embedded:
            check_name(spec, sources)
    if guidance is not None:
        spec = replace(spec, guidance=guidance)
    if temperature is not None:
        spec = replace(spec, temperature=temperature)
    return spec, sources


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
    spec = _known(name or DEFAULT_MODEL)
    if weights or vae or local_dir or spec.hub is None:
        return None
    if local_files(spec, text_encoder=text_encoder is None).state == "complete":
        return None
    return plan_fetch(spec, text_encoder=text_encoder is None)


def check_name(spec: ModelSpec, sources: Sources) -> None:
    """Compares the sizes in a checkpoint's headers with those of its name, before any work.

    Raises:
        CheckpointError: it is another model's, which is named where the registry knows it.
    """
    found = infer_transformer_config(read_state(sources.transformer))
    if (found.depth, found.width, found.bits) == (
        spec.transformer.depth,
        spec.transformer.width,
        spec.transformer.bits,
    ):
        return
    names = [name for name, known in MODELS.items() if known.transformer == found]
    is_of = f"that is {' or '.join(names)}; " if names else ""
    raise CheckpointError(
        f"{sources.transformer} is not {spec.name}: it has {_sizes(found)}; {is_of}{spec.name} has "
        f"{_sizes(spec.transformer)}",
        hint="give the file that belongs to the name, or leave --model out: sizes are then read from the file",
    )


def _sizes(config: InfinityConfig) -> str:
    return f"{config.depth} blocks of width {config.width} and {config.bits} bits a token"


def _known(name: str) -> ModelSpec:
    spec = find_model(name)
    if not isinstance(spec, ModelSpec):
        raise ConfigError(f"{name} is a class-conditional model, for which there are no engines yet")
    return spec


def infer_spec(sources: Sources, name: str = "custom") -> ModelSpec:
    """Architecture from the files alone: patchify is on where a token has four times the VAE's bits."""
    transformer = infer_transformer_config(read_state(sources.transformer))
    vae = infer_vae_config(read_state(sources.vae))
    patches = {vae.bits: 1, 4 * vae.bits: 2}
    if transformer.bits not in patches:
        raise CheckpointError(
            f"the transformer draws {transformer.bits} bits a token, which the VAE's {vae.bits} bits do not make "
            "(once, or four times with 2x2 patchify)",
            hint="give the VAE that belongs to the transformer",
        )
    patch = patches[transformer.bits]
    return ModelSpec(name, f"from {sources.transformer.name}", transformer, vae, patch, licence="not stated")

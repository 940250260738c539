"""Resolution of a registry name, given files, or both to an architecture and its files."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from ldp_runtime.errors import ConfigError

from ldp_export.checkpoints.sources import EMBEDDED, Sources
from ldp_export.hub.client import UnreachableHubError
from ldp_export.hub.fetch import FetchPlan, plan_fetch, registry_plan
from ldp_export.hub.local import local_files
from ldp_export.models.registry import DEFAULT_MODEL, AnySpec, NamedModel, find_model


def resolve_model(
    name: str | None = None,
    weights: Path | None = None,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    text_encoder_2: Path | None = None,
    guidance: float | None = None,
    temperature: float | None = None,
    local_dir: Path | None = None,
    policy: str | None = None,
) -> tuple[AnySpec, Sources]:
    """The model and its files, all on this machine; without a name, sizes are read from the given files.

    Raises:
        ConfigError: unknown name, missing parts, or impossible defaults.
        CheckpointError: the files are not of this model.
    """
    if name is None and (weights is not None or vae is not None):
        from ldp_export.checkpoints.infer import infer_spec

        sources = find_sources(find_model(DEFAULT_MODEL), weights, vae, text_encoder, text_encoder_2, local_dir)
        spec = infer_spec(sources)
    else:
        spec = find_model(name or DEFAULT_MODEL)
        sources = find_sources(spec, weights, vae, text_encoder, text_encoder_2, local_dir)
        if not spec.embedded:
            from ldp_export.checkpoints.infer import check_name

            check_name(spec, sources)
    return with_defaults(spec, guidance, temperature, policy), sources


def with_defaults(
    spec: AnySpec, guidance: float | None, temperature: float | None, policy: str | None = None
) -> AnySpec:
    """The model with other defaults; raises ConfigError for values that every request would refuse."""
    if guidance is not None:
        if not math.isfinite(guidance):
            raise ConfigError(f"guidance must be finite, got {guidance}", hint=f"the model's is {spec.guidance:g}")
        spec = replace(spec, guidance=guidance)
    if temperature is not None:
        if not 0 < temperature < math.inf:
            raise ConfigError(
                f"temperature must be positive, got {temperature}", hint=f"the model's is {spec.temperature:g}"
            )
        spec = replace(spec, temperature=temperature)
    if policy is not None:
        from ldp_runtime.pruning.parse import parse_policy, policy_text
        from ldp_runtime.pruning.policy import Policy

        parsed = parse_policy(policy) or Policy()
        for schedule in spec.schedules:
            parsed.check(schedule)
        spec = replace(spec, policy=policy_text(parsed))
    return spec


def pending_fetch(
    name: str | None,
    weights: Path | None = None,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    text_encoder_2: Path | None = None,
    local_dir: Path | None = None,
    registry: bool = False,
) -> FetchPlan | None:
    """Plan of the downloads that a build needs first; None if all files are here.

    Args:
        registry: answers from the registry alone if the hub cannot be reached; such a plan can only be shown.

    Raises:
        ConfigError: unknown name.
        HubError, CheckpointError, CapacityError: see `plan_fetch`.
    """
    spec = find_model(name or DEFAULT_MODEL)
    if weights or vae or local_dir or spec.hub is None:
        return None
    published_text = text_encoder is None and text_encoder_2 is None
    if local_files(spec, text_encoder=published_text).state == "complete":
        return None
    try:
        return plan_fetch(spec, text_encoder=published_text)
    except UnreachableHubError as error:
        if not registry:
            raise
        return registry_plan(spec, error.message, text_encoder=published_text)


def find_sources(
    spec: NamedModel,
    weights: Path | None = None,
    vae: Path | None = None,
    text_encoder: Path | None = None,
    text_encoder_2: Path | None = None,
    local_dir: Path | None = None,
) -> Sources:
    """Parts of a model: the given paths, else the package's own files, else fetched files. Downloads nothing.

    Args:
        local_dir: a folder written by `ldp-export fetch --local-dir`, instead of the hub's cache.

    Raises:
        ConfigError: a part is given and another cannot be found.
        CheckpointError: a file does not exist.
    """
    if weights is not None or vae is not None:
        if weights is None or vae is None:
            given, missing = ("--vae", "--weights") if weights is None else ("--weights", "--vae")
            raise ConfigError(f"{given} is given without {missing}", hint="give --weights and --vae together")
        if local_dir is not None:
            raise ConfigError("--weights and --vae are files of their own", hint="leave --local-dir out")
        sources = Sources(weights, vae, text_encoder, text_encoder_2)
    elif spec.embedded:
        if any(given is not None for given in (text_encoder, text_encoder_2, local_dir)):
            raise ConfigError(
                f"{spec.name} brings its own files, text encoder included",
                hint="leave --text-encoder and --local-dir out, or name another --model, or --weights and --vae",
            )
        folder = EMBEDDED / spec.name.replace("-", "_")
        parts = (folder / "transformer.safetensors", folder / "vae.safetensors", folder / "text_encoder")
        sources = Sources(*parts).all_published()
    elif spec.hub is not None:
        from ldp_export.hub.fetch import fetched_sources

        sources = fetched_sources(spec, local_dir, (text_encoder, text_encoder_2))
    else:
        raise ConfigError(
            f"no weights of {spec.name} were ever released", hint="give your own with --weights and --vae"
        )
    sources.check()
    return sources

"""Inference of a model's family and sizes from the shapes of the tensors in its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ldp_runtime.errors import CheckpointError

from ldp_export.checkpoints.files.tensors import Part, State, read_state
from ldp_export.checkpoints.hart import hart_spec, holds_hart, infer_hart_config
from ldp_export.checkpoints.infinity import infer_infinity_config, infer_infinity_vae_config, infinity_spec
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.switti import holds_switti, infer_switti_config, switti_spec
from ldp_export.checkpoints.var import holds_var, infer_var_config, infer_var_vae_config, var_spec
from ldp_export.models.registry import MODELS, AnySpec

Inferred = TypeVar("Inferred")


@dataclass(frozen=True)
class _Family:
    """Readers of one family's files.

    Attributes:
        holds: says whether a transformer's tensors are of this family.
        config, vae_config: sizes of the transformer (whose path is given too) and of the VAE, from their tensors.
        spec: specification from a name, a title and both sizes.
    """

    holds: Callable[[State], bool]
    config: Callable[[State, Path], Any]
    vae_config: Callable[[State], Any]
    spec: Callable[[str, str, Any, Any], AnySpec]


#: Families in the order in which they are tried; the last one takes, and explains, whatever no other holds.
_FAMILIES = (
    _Family(holds_var, lambda state, _: infer_var_config(state), infer_var_vae_config, var_spec),
    _Family(holds_switti, infer_switti_config, infer_var_vae_config, switti_spec),
    _Family(holds_hart, infer_hart_config, infer_var_vae_config, hart_spec),
    _Family(
        lambda state: True, lambda state, _: infer_infinity_config(state), infer_infinity_vae_config, infinity_spec
    ),
)


def check_name(spec: AnySpec, sources: Sources) -> None:
    """Compares the sizes in a checkpoint's headers with those of the named model, before any work.

    Raises:
        CheckpointError: the checkpoint is of another model; the error names it if the registry knows it.
    """
    _, config = _family_of(sources.transformer)
    if config.summary == spec.transformer.summary:
        return
    names = [name for name, known in MODELS.items() if known.transformer == config]
    is_of = f"that is {' or '.join(names)}; " if names else ""
    raise CheckpointError(
        f"{sources.transformer} is not {spec.name}: it has {config.summary}; {is_of}{spec.name} has "
        f"{spec.transformer.summary}",
        hint="give the file that belongs to the name, or leave --model out: sizes are then read from the file",
    )


def infer_spec(sources: Sources, name: str = "custom") -> AnySpec:
    """Infers family and architecture from the files alone.

    Raises:
        CheckpointError: files of no family, or a transformer and a VAE that do not belong together.
    """
    family, config = _family_of(sources.transformer)
    vae = _inferred(sources.vae, "vae", family.vae_config)
    return family.spec(name, f"from {sources.transformer.name}", config, vae)


def _family_of(transformer: Path) -> tuple[_Family, Any]:
    """Family of a transformer's file, and its sizes."""
    state = read_state(transformer, "transformer")
    family = next(family for family in _FAMILIES if family.holds(state))
    return family, _in_file(transformer, lambda: family.config(state, transformer))


def _inferred(path: Path, part: Part, infer: Callable[[State], Inferred]) -> Inferred:
    state = read_state(path, part)
    return _in_file(path, lambda: infer(state))


def _in_file(path: Path, read: Callable[[], Inferred]) -> Inferred:
    """Result of reading a file's tensors; errors name the file."""
    try:
        return read()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error.message}", hint=error.hint) from error

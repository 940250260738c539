"""Models of true shapes without a checkpoint: random weights in an architecture of the registry, or a smaller one.

Such a model draws noise. Its times are real, but its images and a policy's choices on them mean nothing. Keep shares
and the scale after which the unconditional branch stops are therefore given. They lie beside the bundle, with the
checkpoint that eager PyTorch reads, so that a comparison of such a bundle needs no options.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import ConfigError
from ldp_runtime.system.disk import put_in_place, scratch_path, write_durably

from ldp_export.bench.given_shares import Shares
from ldp_export.building.plan import CHECKPOINT, SHARES
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.synthetic import write_checkpoint
from ldp_export.models.registry import AnySpec

#: The VAE's group norms take multiples of this many channels.
_VAE_STEP = 32


@dataclass(frozen=True)
class RandomWeights:
    """Checkpoint of a bundle of random weights, and the shares that stand in for a policy's choices."""

    sources: Sources
    shares: Shares

    @property
    def origin(self) -> str:
        """Source of the shares, in words."""
        return self.shares.origin

    @property
    def policies(self) -> tuple[str, ...]:
        return given_policies(self.shares.keep, self.shares.stop_scale)


Spec = TypeVar("Spec", bound=AnySpec)


def smaller(spec: Spec, depth: int | None, width: int | None) -> Spec:
    """Spec with fewer blocks or channels: the same head size, ratios and schedule; the VAE's width in proportion.

    Raises:
        ConfigError: the width is no multiple of the model's head size.
    """
    whole = spec.transformer
    depth, width = whole.depth if depth is None else depth, whole.width if width is None else width
    if (depth, width) == (whole.depth, whole.width):
        return spec
    if depth < 1 or width < whole.head_dim or width % whole.head_dim:
        raise ConfigError(
            f"--depth must be positive and --width a multiple of {whole.head_dim}, got {depth}, {width}",
            hint=f"as --depth 2 --width {2 * whole.head_dim}",
        )
    transformer: Any = whole.resized(depth, width)
    steps = round(spec.vae.base_channels * width / whole.width / _VAE_STEP)
    vae = replace(spec.vae, base_channels=_VAE_STEP * max(1, steps))
    return replace(spec, name=f"{spec.name}-depth{depth}-width{width}", transformer=transformer, vae=vae, hub=None)


def given_policies(keep: Sequence[float], stop_scale: int | None) -> tuple[str, ...]:
    """Policies in words: the shares with all scales, the same without the last two, and the controls."""
    stop = f",stop={stop_scale}" if stop_scale is not None else ""
    given = f"top-k:share={'+'.join(f'{share:g}' for share in keep)}+,score=random,fill=zero{stop}"
    controls = ("none:skip_last=1", "none:skip_last=2")
    if stop_scale is not None:
        controls += (f"none:stop={stop_scale}",)
    return (given, f"{given},skip_last=2", *controls)


def random_spec(spec: Spec, depth: int | None = None, width: int | None = None) -> Spec:
    """Spec of random weights: smaller if a depth or a width is given, and under a name that says what it is."""
    made = smaller(spec, depth, width)
    return replace(made, name=f"{made.name}-random", hub=None, embedded=False)


def write_random(spec: AnySpec, shares: Shares, output: Path) -> Sources:
    """Writes a checkpoint of random weights into the folder of a bundle; an interrupted one is written anew.

    Args:
        shares: keep shares and stop scale for comparisons of the bundle.
        output: path of the bundle.
    """
    folder = output / CHECKPOINT
    note = {"model": spec.name, "shares": asdict(shares)}
    written = _read_note(folder)
    if written is None or written["model"] != spec.name:
        _write_whole(spec, note, folder)
    else:
        write_durably(folder / SHARES, json.dumps(note).encode())
    return _sources(folder)


def _write_whole(spec: AnySpec, note: dict[str, Any], folder: Path) -> None:
    """Writes the checkpoint and its note aside, so that no half of them is ever in place."""
    shutil.rmtree(folder, ignore_errors=True)
    scratch = scratch_path(folder.parent)
    try:
        write_checkpoint(spec, scratch)
        (scratch / SHARES).write_text(json.dumps(note))
        put_in_place(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def read_random(bundle: Bundle) -> RandomWeights | None:
    """Random weights beside a bundle; None for a bundle that was built from a real checkpoint.

    Raises:
        ConfigError: the checkpoint beside the bundle is of another model.
    """
    if bundle.root is None or (note := _read_note(bundle.root / CHECKPOINT)) is None:
        return None
    if note["model"] != bundle.manifest.model.name:
        raise ConfigError(
            f"the checkpoint in {bundle.root / CHECKPOINT} is of {note['model']}, the bundle of "
            f"{bundle.manifest.model.name}",
            hint="build the bundle again with --random-weights",
        )
    shares = note["shares"]
    given = Shares(tuple(shares["keep"]), shares["stop_scale"], shares["origin"])
    return RandomWeights(_sources(bundle.root / CHECKPOINT), given)


def _read_note(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / SHARES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _sources(folder: Path) -> Sources:
    """Files that `write_checkpoint` has written: one file, or a folder of shards."""
    single = folder / "transformer.safetensors"
    return Sources(single if single.exists() else folder / "transformer", folder / "vae.safetensors")

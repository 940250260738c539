"""Checkpoints to safetensors in a chosen precision: once, as a stream, without running pickled code.

Only the matrices of the blocks (and of the text encoder) change precision: what the original code keeps in float32,
everything around the blocks and the VAE, stays as it is. Rounding is what a build would do anyway, so a
build from the converted files makes the same engines, from half of the bytes.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from ldp_runtime.disk import exclusive, full_disk_is_typed, remove_leftovers, require_room
from ldp_runtime.errors import CheckpointError, ConfigError

from ldp_export.checkpoints.t5 import CONFIG_FILE, TOKENIZER_FILE, encoder_state
from ldp_export.checkpoints.tensor_files import INDEX_NAME, State, listing, read_state
from ldp_export.checkpoints.tensor_writer import TensorSource, write_tensors
from ldp_export.models.var import FLOAT32_ISLANDS as VAR_ISLANDS

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


SHARD_BYTES = 4 * 2**30


#: While files are written they lie in a folder with this ending; a later run goes on in it.
PARTIAL = ".partial"


_RECORD = "conversion.json"


_BLOCK = re.compile(r"(block_chunks\.\d+\.module\.|blocks\.)\d+\.")


#: Of training only; it holds minus infinity where it hides tokens.
_TRAINING_MASK = "attn_bias_for_masking"


@dataclass(frozen=True)
class Conversion:
    """A checked conversion; making one reads headers only.

    Attributes:
        shards: file name -> what goes into it. beside: small files that belong to the checkpoint and are copied.
    """

    source: Path
    target: Path
    precision: str
    shards: Mapping[str, list[TensorSource]]
    beside: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(source.bytes for sources in self.shards.values() for source in sources)

    @property
    def begun(self) -> Path:
        """Where files are written until all are there."""
        return self.target.with_name(self.target.name + PARTIAL)

    @property
    def record(self) -> dict[str, object]:
        """What the result depends on: a begun conversion of something else is not continued."""
        files = [self.source] if self.source.is_file() else sorted(p for p in self.source.iterdir() if p.is_file())
        stats = [(file.name, file.stat()) for file in files]
        return {
            "source": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "precision": self.precision,
            "shards": {name: [source.name for source in sources] for name, sources in self.shards.items()},
        }


def check_precision(name: str) -> None:
    """Raises ConfigError for a precision that nothing is converted to."""
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision {name!r}", hint=f"one of {', '.join(PRECISIONS)}")


def plan_conversion(source: Path, target: Path, precision: str, shard_bytes: int = SHARD_BYTES) -> Conversion:
    """Checks source, target and disk.

    Args:
        source: a `.pth` or safetensors file, a folder of shards, or the folder of a T5 model (its encoder is taken).
        target: a folder that will hold the shards and their index; or a `.safetensors` file for one file.

    Raises:
        ConfigError: unknown precision, or a target that exists. CheckpointError: see `read_state`.
        CapacityError: the disk is too small.
    """
    check_precision(precision)
    if target.exists():
        raise ConfigError(f"{target} exists", hint="name a new path, or delete it first")
    state, is_text_encoder = read_state(source), (source / CONFIG_FILE).is_file()
    if is_text_encoder:
        state = encoder_state(state)
    state.pop(_TRAINING_MASK, None)
    changes = _changes_of_text_encoder if is_text_encoder else _changes_of_blocks(state)
    dtype = PRECISIONS[precision]
    sources = [TensorSource.of(k, v, dtype if changes(k) and v.dim() > 1 else None) for k, v in state.items()]
    single = target.suffix == ".safetensors"
    if single and is_text_encoder:
        raise ConfigError(f"a text encoder is a folder, and {target} names a file", hint="name a folder")
    shards = {target.name: sources} if single else _grouped(sources, shard_bytes)
    plan = Conversion(source, target, precision, shards, (CONFIG_FILE, TOKENIZER_FILE) if is_text_encoder else ())
    _check_beside(plan)
    _check_disk(plan)
    return plan


def _changes_of_text_encoder(key: str) -> bool:
    return "relative_attention_bias" not in key


def _changes_of_blocks(state: State) -> Callable[[str], bool]:
    """Of VAR the original keeps more in float32 than of Infinity, whose blocks it casts whole."""
    if "class_emb.weight" not in state:
        return lambda key: _BLOCK.match(key) is not None
    return lambda key: _BLOCK.match(key) is not None and VAR_ISLANDS.match(key) is None


def _grouped(sources: list[TensorSource], shard_bytes: int) -> dict[str, list[TensorSource]]:
    groups: list[list[TensorSource]] = [[]]
    for source in sources:
        if groups[-1] and sum(s.bytes for s in groups[-1]) + source.bytes > shard_bytes:
            groups.append([])
        groups[-1].append(source)
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, start=1)}


def _check_beside(plan: Conversion) -> None:
    absent = [name for name in plan.beside if not (plan.source / name).is_file()]
    if absent:
        raise CheckpointError(f"the text encoder {plan.source} lacks {listing(absent)}", hint="fetch it again")


def _check_disk(plan: Conversion) -> None:
    there = sum(p.stat().st_size for p in plan.begun.iterdir()) if plan.begun.is_dir() else 0
    hint = "free some space, or choose another disk"
    require_room(plan.target.parent, plan.bytes - there, f"converting {plan.source}", hint)


def convert(plan: Conversion, say: Callable[[str, int, int], None] = lambda name, done, total: None) -> Path:
    """Writes the target, which appears whole or not at all; finished shards of an interrupted run are kept.

    Args:
        say: told each tensor's name before it is written, the bytes written before it, and all bytes.

    Raises:
        ConfigError: another process is converting to this folder.
        CheckpointError: a value is NaN or infinite, or becomes so in the precision asked for; nothing is left.
        CapacityError: the disk is full; run again, it goes on.
    """
    plan.target.parent.mkdir(parents=True, exist_ok=True)
    meter = _Meter(plan, say)
    with full_disk_is_typed(plan.target.parent):
        lock = plan.target.with_name(plan.target.name + ".lock")
        with exclusive(lock, f"conversion is writing {plan.target}"):
            try:
                return _convert(plan, meter)
            finally:
                lock.unlink()


def _convert(plan: Conversion, meter: _Meter) -> Path:
    begun = _begin(plan)
    try:
        _write_shards(plan, begun, meter)
    except CheckpointError:
        shutil.rmtree(begun)
        raise
    if plan.target.suffix != ".safetensors":
        return begun.rename(plan.target)
    whole = (begun / plan.target.name).rename(plan.target)
    shutil.rmtree(begun)
    return whole


def _write_shards(plan: Conversion, begun: Path, meter: _Meter) -> None:
    """What is missing of the shards, their index, and the files beside them."""
    for name, sources in plan.shards.items():
        if (begun / name).exists():
            meter.skip(sources)
        else:
            write_tensors(sources, begun / name, meter)
    if len(plan.shards) > 1:
        places = {source.name: name for name, sources in plan.shards.items() for source in sources}
        index = {"metadata": {"total_size": plan.bytes}, "weight_map": dict(sorted(places.items()))}
        (begun / INDEX_NAME).write_text(json.dumps(index, indent=1))
    for name in plan.beside:
        shutil.copyfile(plan.source / name, begun / name)
    (begun / _RECORD).unlink()


def _begin(plan: Conversion) -> Path:
    """The folder in which shards are written: that of an earlier run of the same conversion, or an empty one."""
    begun, record = plan.begun, json.dumps(plan.record)
    if not (begun / _RECORD).is_file() or (begun / _RECORD).read_text() != record:
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True)
        (begun / _RECORD).write_text(record)
    remove_leftovers(begun)
    return begun


class _Meter:
    """Counts the bytes of the tensors whose turn has come."""

    def __init__(self, plan: Conversion, say: Callable[[str, int, int], None]) -> None:
        self._sizes = {source.name: source.bytes for sources in plan.shards.values() for source in sources}
        self._done, self._total, self._say = 0, plan.bytes, say

    def __call__(self, name: str) -> None:
        self._say(name, self._done, self._total)
        self._done += self._sizes[name]

    def skip(self, sources: list[TensorSource]) -> None:
        self._done += sum(source.bytes for source in sources)

"""Conversion of checkpoints to safetensors in a chosen precision: streamed, and without running pickled code.

Only the matrices of the blocks (and of the text encoder) change precision. The VAE, everything around the blocks, and
all that the original code keeps in float32 stay as they are. A build rounds the same weights in the same way, so
converted files give the same engines from half of the bytes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import CheckpointError, ConfigError
from ldp_runtime.system.disk import (
    exclusive,
    full_disk_is_typed,
    remove_files,
    remove_leftovers,
    require_room,
    sync,
    sync_tree,
    write_durably,
)
from ldp_runtime.system.small_files import is_plain_file, read_json, stays_inside

from ldp_export.checkpoints.clip import holds_clip, tower_state
from ldp_export.checkpoints.files.parts import (
    CONFIG_FILE,
    INSTRUCTION_FILE,
    TOKENIZER_CONFIG,
    TOKENIZER_FILE,
    files_read,
    folder_of,
)
from ldp_export.checkpoints.files.tensors import State, listing, read_state
from ldp_export.checkpoints.files.writer import TensorSource, check_types, write_tensors
from ldp_export.checkpoints.hart import holds_hart
from ldp_export.checkpoints.qwen2vl import holds_qwen2, text_stack_state
from ldp_export.checkpoints.switti import holds_switti
from ldp_export.checkpoints.t5 import encoder_state
from ldp_export.checkpoints.var import holds_var
from ldp_export.models.hart import FLOAT32_ISLANDS as HART_ISLANDS
from ldp_export.models.hub_files import INDEX_NAME
from ldp_export.models.switti import FLOAT32_ISLANDS as SWITTI_ISLANDS
from ldp_export.models.var import FLOAT32_ISLANDS as VAR_ISLANDS

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


SHARD_BYTES = 4 * 2**30


#: Ending of the folder in which files are written; a later run continues in it.
PARTIAL = ".partial"


_RECORD = "conversion.json"


_BLOCK = re.compile(r"(block_chunks\.\d+\.module\.|blocks\.)\d+\.")


#: Attention mask that only training uses; it holds minus infinity for hidden tokens.
_TRAINING_MASK = "attn_bias_for_masking"


#: Weights of a block that stay float32, by family.
_ISLANDS = ((holds_var, VAR_ISLANDS), (holds_switti, SWITTI_ISLANDS), (holds_hart, HART_ISLANDS))
#: Those whose `config.json` beside the weights says what the weights do not.
_CONFIGURED = (holds_switti, holds_hart)


@dataclass(frozen=True)
class Conversion:
    """A checked conversion; planning it reads headers only.

    Attributes:
        shards: tensors of each file, by the file's name.
        beside: names of small files of the checkpoint that are copied unchanged.
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
        """Folder in which files are written until all are complete."""
        return self.target.with_name(self.target.name + PARTIAL)

    @property
    def record(self) -> dict[str, object]:
        """Facts that determine the result; a begun conversion is continued only if its record is the same."""
        beside = (folder_of(self.source) / name for name in self.beside)
        stats = [(file.name, file.stat()) for file in (*files_read(self.source), *beside)]
        return {
            "source": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
            "precision": self.precision,
            "shards": {name: [source.name for source in sources] for name, sources in self.shards.items()},
        }


def check_precision(name: str) -> None:
    """Raises ConfigError for a precision that is not in `PRECISIONS`."""
    if name not in PRECISIONS:
        raise ConfigError(f"unknown precision {name!r}", hint=f"one of {', '.join(PRECISIONS)}")


def plan_conversion(source: Path, target: Path, precision: str, shard_bytes: int = SHARD_BYTES) -> Conversion:
    """Plans a conversion after checking its source, target and disk.

    Args:
        source: a `.pth` or safetensors file, a folder of shards, or the folder of a T5 or CLIP model. Of those the text
            encoder is taken.
        target: a folder for the shards and their index, or the name of a single `.safetensors` file.

    Raises:
        ConfigError: unknown precision, or a target that exists.
        CheckpointError: see `read_state`.
        CapacityError: the disk is too small.
    """
    check_precision(precision)
    if os.path.lexists(target):
        raise ConfigError(f"{target} exists", hint="name a new path, or delete it first")
    state = read_state(source)
    is_text_encoder = is_plain_file(source / CONFIG_FILE) and not _is_configured(state)
    if is_text_encoder:
        state = _text_state(state)
    state.pop(_TRAINING_MASK, None)
    changes = _changes_of_text_encoder if is_text_encoder else _changes_of_blocks(state)
    dtype = PRECISIONS[precision]
    sources = [TensorSource.of(k, v, dtype if changes(k) and v.dim() > 1 else None) for k, v in state.items()]
    check_types(sources)
    single = target.suffix.lower() == ".safetensors"
    beside = _beside(source, state, is_text_encoder)
    if single and beside:
        raise ConfigError(
            f"{' and '.join(beside)} must lie beside the weights, and {target} names a file", hint="name a folder"
        )
    shards = {target.name: sources} if single else _grouped(sources, shard_bytes)
    plan = Conversion(source, target, precision, shards, beside)
    _check_beside(plan)
    _check_disk(plan)
    return plan


def _text_state(state: State) -> State:
    """Tensors of a text encoder that a build reads."""
    if holds_qwen2(state):
        return text_stack_state(state)
    return tower_state(state) if holds_clip(state) else encoder_state(state)


def _beside(source: Path, state: State, is_text_encoder: bool) -> tuple[str, ...]:
    """Names of the small files that are read with the weights."""
    if is_text_encoder:
        more = (TOKENIZER_CONFIG,) if holds_qwen2(state) else ()
        own = (INSTRUCTION_FILE,) if more and is_plain_file(source / INSTRUCTION_FILE) else ()
        return (CONFIG_FILE, TOKENIZER_FILE, *more, *own)
    return (CONFIG_FILE,) if _is_configured(state) else ()


def _is_configured(state: State) -> bool:
    return any(holds(state) for holds in _CONFIGURED)


def _changes_of_text_encoder(key: str) -> bool:
    return "relative_attention_bias" not in key


def _changes_of_blocks(state: State) -> Callable[[str], bool]:
    """Tells which weights change: all of Infinity's blocks; of other families', some stay float32 as in graphs."""
    islands = next((islands for holds, islands in _ISLANDS if holds(state)), None)
    return lambda key: _BLOCK.match(key) is not None and (islands is None or islands.match(key) is None)


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
    absent = [name for name in plan.beside if not is_plain_file(folder_of(plan.source) / name)]
    if absent:
        raise CheckpointError(
            f"{folder_of(plan.source)} lacks {listing(absent)}, read with the weights", hint="fetch it again"
        )


def _check_disk(plan: Conversion) -> None:
    written = sum(p.stat().st_size for p in plan.begun.iterdir()) if plan.begun.is_dir() else 0
    hint = "free some space, or choose another disk"
    require_room(plan.target.parent, plan.bytes - written, f"converting {plan.source}", hint)


def convert(plan: Conversion, say: Callable[[str, int, int], None] = lambda name, done, total: None) -> Path:
    """Writes the target, which appears complete or not at all; finished shards of an interrupted run are kept.

    Args:
        say: called before each tensor with its name, the bytes written so far, and the total bytes.

    Raises:
        ConfigError: another process is converting to this folder.
        CheckpointError: a value is NaN or infinite, or becomes so in the precision asked for; nothing is left.
        CapacityError: the disk is full; running it again continues.
    """
    plan.target.parent.mkdir(parents=True, exist_ok=True)
    meter = _Meter(plan, say)
    with full_disk_is_typed(plan.target.parent):
        lock = plan.target.with_name(plan.target.name + ".lock")
        with exclusive(lock, f"conversion is writing {plan.target}"):
            try:
                return _convert(plan, meter)
            finally:
                lock.unlink(missing_ok=True)


def _convert(plan: Conversion, meter: _Meter) -> Path:
    begun = _begin(plan)
    try:
        _write_shards(plan, begun, meter)
    except CheckpointError:
        _forget(plan)
        raise
    sync_tree(begun)
    if plan.target.suffix.lower() == ".safetensors":
        target = (begun / plan.target.name).rename(plan.target)
        with suppress(OSError):  # somebody's own files lie in it
            begun.rmdir()
    else:
        target = begun.rename(plan.target)
    sync(target.parent)
    return target


def _write_shards(plan: Conversion, begun: Path, meter: _Meter) -> None:
    """Writes the missing shards, their index, and the files beside them."""
    for name, sources in plan.shards.items():
        if (begun / name).exists():
            meter.skip(sources)
        else:
            write_tensors(sources, begun / name, meter)
    if len(plan.shards) > 1:
        shard_of = {source.name: name for name, sources in plan.shards.items() for source in sources}
        index = {"metadata": {"total_size": plan.bytes}, "weight_map": dict(sorted(shard_of.items()))}
        write_durably(begun / INDEX_NAME, json.dumps(index, indent=1).encode())
    for name in plan.beside:
        shutil.copyfile(folder_of(plan.source) / name, begun / name)
    (begun / _RECORD).unlink()


def _begin(plan: Conversion) -> Path:
    """Folder in which shards are written: that of an earlier run of the same conversion, or an empty one."""
    begun, record = plan.begun, plan.record
    if _known(begun) != json.loads(json.dumps(record)):
        _forget(plan)
        begun.mkdir(parents=True)
        write_durably(begun / _RECORD, json.dumps(record).encode())
    remove_leftovers(begun)
    return begun


def _known(begun: Path) -> dict[str, Any] | None:
    """Record of an earlier run; None if there is none that can be read."""
    try:
        record = read_json(begun / _RECORD)
        return record if isinstance(record, dict) and isinstance(record["shards"], dict) else None
    except (OSError, ValueError, KeyError):
        return None


def _forget(plan: Conversion) -> None:
    """Deletes what earlier runs wrote, and nothing else.

    Raises:
        ConfigError: the folder holds other things.
    """
    begun, known = plan.begun, _known(plan.begun) or {"shards": {}}
    names = [name for name in (*known["shards"], *plan.shards) if stays_inside(name)]
    remove_leftovers(begun)
    remove_files(begun, [*names, INDEX_NAME, CONFIG_FILE, TOKENIZER_FILE, _RECORD])
    if os.path.lexists(begun):
        raise ConfigError(
            f"{begun}, where the conversion would write, holds other things", hint="move them, or name another output"
        )


class _Meter:
    """Counts the bytes of the tensors written or skipped so far."""

    def __init__(self, plan: Conversion, say: Callable[[str, int, int], None]) -> None:
        self._sizes = {source.name: source.bytes for sources in plan.shards.values() for source in sources}
        self._done, self._total, self._say = 0, plan.bytes, say

    def __call__(self, name: str) -> None:
        self._say(name, self._done, self._total)
        self._done += self._sizes[name]

    def skip(self, sources: list[TensorSource]) -> None:
        self._done += sum(source.bytes for source in sources)

"""Reading and writing of tensor files: safetensors, sharded folders with an index, and `.pth`.

No pickled code runs. Files are memory-mapped: the values of a tensor come from the disk when they are used. A
checkpoint larger than memory can therefore be opened, compared, and written anew tensor by tensor.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from ldp_runtime.errors import CheckpointError
from safetensors import SafetensorError, safe_open

from ldp_export.checkpoints.sources import INDEX_NAME
from ldp_export.checkpoints.tensor_writer import TensorSource, write_tensors

State = dict[str, torch.Tensor]


def read_state(path: Path | str) -> State:
    """All tensors, memory-mapped, of a safetensors file, a sharded folder (or its index file), or a `.pth` file.

    Raises:
        CheckpointError: the file or a shard is missing, truncated, or holds pickled objects other than tensors.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"there is no file or folder {path}",
            hint="check the path: a .pth or safetensors file, or a folder of shards with their index",
        )
    if path.is_dir():
        index = path / INDEX_NAME
        shards = sorted(path.glob("*.safetensors"))
        if index.exists():
            return _read_sharded(index)
        if len(shards) == 1:
            return _read_safetensors(shards[0])
        raise CheckpointError(
            f"{path} holds {len(shards)} safetensors files and no {INDEX_NAME}",
            hint="name the file itself, or fetch the index file that belongs to the shards",
        )
    if path.name.endswith(".index.json"):
        return _read_sharded(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_pth(path)


def _read_safetensors(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"cannot read {path} ({path.stat().st_size} bytes): {error}",
            hint="the file is truncated or not safetensors; fetch it again",
        ) from error


def _read_sharded(index: Path) -> State:
    try:
        files: Mapping[str, str] = json.loads(index.read_text())["weight_map"]
        shards = sorted({str(name) for name in files.values()})
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"{index} is not a safetensors index: {error!r}", hint="copy the folder again, or fetch it anew"
        ) from error
    state: State = {}
    for name in shards:
        shard = index.parent / name
        if not shard.exists():
            raise CheckpointError(
                f"{index} names the shard {name}, which is not beside it",
                hint="copy that file into the folder, or fetch it anew",
            )
        state |= _read_safetensors(shard)
    absent = sorted(set(files) - set(state))
    if absent:
        raise CheckpointError(
            f"{index} names keys that its shards lack: {listing(absent)}",
            hint="copy the folder again, or fetch it anew: a shard is of another version",
        )
    return {key: state[key] for key in files}


def _read_pth(path: Path) -> State:
    try:
        # Files in torch's old format cannot be mapped into memory; they are read whole.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many types here: pickle, zip, runtime
        raise CheckpointError(
            f"cannot read {path} without running pickled code: no checkpoint, truncated, or more than tensors in it",
            hint="fetch it again; or convert it to safetensors on a machine where you trust it",
        ) from error
    return _find_weights(loaded, path)


def _find_weights(loaded: object, path: Path) -> State:
    """Tensor dictionary inside a known container: flat, `vae`, `state_dict`, or a training checkpoint."""
    if isinstance(loaded, Mapping):
        for keys in (("trainer", "gpt_fsdp"), ("vae",), ("state_dict",)):
            inner: object = loaded
            for key in keys:
                inner = inner.get(key) if isinstance(inner, Mapping) else None
            if isinstance(inner, Mapping):
                loaded = inner
                break
        if loaded and all(isinstance(value, torch.Tensor) for value in loaded.values()):
            return {str(key): value for key, value in loaded.items()}
    raise CheckpointError(
        f"{path} holds no dictionary of tensors (looked at the top, 'vae' and 'trainer.gpt_fsdp')",
        hint="give the file that the original code saves, or safetensors",
    )


def listing(keys: Iterable[str], most: int = 20) -> str:
    keys = list(keys)
    more = f", and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def save_state(
    state: Mapping[str, torch.Tensor],
    path: Path | str,
    dtype: torch.dtype | None = None,
    on_tensor: Callable[[str], None] = lambda name: None,
) -> None:
    """Writes safetensors tensor by tensor; floating-point tensors are stored as `dtype` if it is given.

    With a state from `read_state`, memory is bounded by a small piece of one tensor.

    Raises:
        CheckpointError: a value is NaN or infinite, or becomes so as `dtype`.
    """
    write_tensors([TensorSource.of(name, tensor, dtype) for name, tensor in state.items()], Path(path), on_tensor)

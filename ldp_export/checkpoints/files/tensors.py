"""Reading and writing of tensor files: safetensors, sharded folders with an index, and `.pth`.

No pickled code runs. Files are memory-mapped: the values of a tensor come from the disk when they are used. A
checkpoint larger than memory can therefore be opened, compared, and written anew tensor by tensor.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from ldp_runtime.errors import CheckpointError
from safetensors import safe_open

from ldp_export.checkpoints.files.parts import check_file, only_file, weight_map
from ldp_export.checkpoints.files.writer import TensorSource, write_tensors
from ldp_export.models.hub_files import INDEX_NAME

State = dict[str, torch.Tensor]
#: Part of a model that is wanted of a file.
Part = Literal["transformer", "vae", "any"]


def read_state(path: Path | str, part: Part = "any") -> State:
    """All tensors, memory-mapped, of a safetensors file, a sharded folder (or its index file), or a `.pth` file.

    Files are read by their content, whatever their names end in.

    Args:
        part: part that is wanted of a file that holds several, as training writes.

    Raises:
        CheckpointError: the file or a shard is missing, truncated, or holds pickled objects other than tensors.
    """
    path = Path(path)
    if path.is_dir():
        index = path / INDEX_NAME
        return _read_sharded(index) if os.path.lexists(index) else _read_file(only_file(path), part)
    return _read_sharded(path) if path.name.endswith(".index.json") else _read_file(path, part)


def _read_file(path: Path, part: Part) -> State:
    check_file(path)
    with path.open("rb") as file:
        start = file.read(64)
    header, braced = int.from_bytes(start[:8], "little"), start[8:9] == b"{"
    if braced and header <= path.stat().st_size:
        return _read_safetensors(path)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return _read_pth(path, part)
    if braced or (path.suffix.lower() == ".safetensors" and _foreign(start) is None):
        return _read_safetensors(path)
    kind = _foreign(start)
    if kind is None:  # the oldest format of torch has no mark of its own
        return _read_pth(path, part)
    raise CheckpointError(
        f"cannot read {path} ({path.stat().st_size} bytes): it is {kind}, neither safetensors nor a file of torch's",
        hint="fetch it again, or name the file of weights",
    )


#: Beginnings of files that are often taken for checkpoints.
_FOREIGN = {
    b"version https://git-lfs": "a pointer to a file in Git LFS, not the file itself",
    b"<": "a page of HTML or XML, as a failed download leaves",
    b"GGUF": "a GGUF file",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "compressed with gzip",
    b"{": "a file of JSON",
}


def _foreign(start: bytes) -> str | None:
    """Kind of a file that is no checkpoint, by its first bytes; None if it may be one."""
    if not start.strip(b"\0"):
        return "full of zeros" if start else "empty"
    return next((kind for mark, kind in _FOREIGN.items() if start.startswith(mark)), None)


def _read_safetensors(path: Path) -> State:
    check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except Exception as error:  # the library raises its own, OSError, ValueError for shapes, AttributeError for types
        raise CheckpointError(
            f"cannot read {path} ({path.stat().st_size} bytes): {_short(error)}",
            hint="the file is truncated or not safetensors; fetch it again",
        ) from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}"


def _read_sharded(index: Path) -> State:
    files = weight_map(index)
    state: State = {}
    for name in sorted(set(files.values())):
        shard = _read_safetensors(index.parent / name)
        state |= {key: shard[key] for key in shard if files.get(key) == name}
    absent = sorted(set(files) - set(state))
    if absent:
        raise CheckpointError(
            f"{index} names keys that its shards lack: {listing(absent)}", hint="fetch the index and all shards again"
        )
    return {key: state[key] for key in files}


def _read_pth(path: Path, part: Part) -> State:
    try:
        loaded = _load_pth(path)
    except Exception as error:  # torch raises many types here: pickle, zip, runtime, recursion
        raise CheckpointError(
            f"cannot read {path} without running pickled code: no checkpoint, truncated, or more than tensors in it",
            hint="fetch it again; or convert it to safetensors on a machine where you trust it",
        ) from error
    return _find_weights(loaded, path, part)


def _load_pth(path: Path) -> object:
    """Content of a file that torch saved, mapped into memory where it can be.

    Files in torch's old format are read whole, and so are those whose name says safetensors: torch believes the name.
    """
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


#: Places of the weights in files that training writes, by part; `any` looks at all of them in this order.
_PLACES: dict[Part, tuple[tuple[str, ...], ...]] = {
    "transformer": (
        ("trainer", "gpt_fsdp"),
        ("trainer", "gpt_wo_ddp"),
        ("trainer", "var_wo_ddp"),
        ("state_dict",),
    ),
    "vae": (("trainer", "vae_local"), ("vae",), ("state_dict",)),
}


def _find_weights(loaded: object, path: Path, part: Part) -> State:
    """Tensor dictionary of a part: the whole file, or inside a container that is known."""
    if _is_state(loaded):
        return {str(key): value for key, value in loaded.items()}
    places = _PLACES[part] if part != "any" else (*_PLACES["transformer"], *_PLACES["vae"])
    for keys in places:
        inner: object = loaded
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if _is_state(inner):
            return {str(key): value for key, value in inner.items()}
    looked = ", ".join(repr(".".join(keys)) for keys in dict.fromkeys(places))
    raise CheckpointError(
        f"{path} holds no dictionary of tensors at the top, nor at {looked}; it holds {_contents(loaded)}",
        hint="save the dictionary of weights alone, or under one of these names",
    )


def _is_state(value: object) -> TypeGuard[Mapping[Any, torch.Tensor]]:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, torch.Tensor) for v in value.values())


def _contents(loaded: object) -> str:
    """Keys of a file in words, two levels deep."""
    if not isinstance(loaded, Mapping):
        return f"a {type(loaded).__name__}"
    names: list[str] = []
    for key, value in loaded.items():
        inner = (
            [f"{key}.{name}" for name in value] if isinstance(value, Mapping) and not _is_state(value) else [str(key)]
        )
        names += inner or [str(key)]
    return listing([name[:80] for name in names]) or "nothing"


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

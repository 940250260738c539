"""Files of a part of a model: which of a folder are read, and what the index of shards names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldp_runtime.errors import CheckpointError
from ldp_runtime.system.small_files import is_plain_file, kind_of, read_json, stays_inside

from ldp_export.models.hub_files import INDEX_NAME, SINGLE_NAME

#: Files that a text encoder has beside its weights.
TOKENIZER_FILE, CONFIG_FILE = "tokenizer.json", "config.json"
#: Those that HART's text encoder has besides: settings of the tokenizer, and the original's file with its instruction.
TOKENIZER_CONFIG, INSTRUCTION_FILE = "tokenizer_config.json", "constants.py"


def folder_of(path: Path) -> Path:
    """Folder of a checkpoint, in which the files beside its weights lie."""
    return path if path.is_dir() else path.parent


def settings_beside(path: Path | None) -> Mapping[str, Any]:
    """Content of the `config.json` beside a checkpoint; empty where there is none. Raises `CheckpointError`."""
    beside = None if path is None else folder_of(path) / CONFIG_FILE
    if beside is None or not is_plain_file(beside):
        return {}
    try:
        content = read_json(beside)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{beside} is no configuration: {error}", hint="fetch it again") from error
    return content if isinstance(content, dict) else {}


def files_read(path: Path) -> list[Path]:
    """Files of a checkpoint that `read_state` reads, in the order of their names; raises CheckpointError as it does."""
    if path.is_dir():
        index = path / INDEX_NAME
        return _indexed_files(index) if os.path.lexists(index) else [only_file(path)]
    return _indexed_files(path) if path.name.endswith(".index.json") else [path]


def _indexed_files(index: Path) -> list[Path]:
    return sorted([index, *(index.parent / name for name in set(weight_map(index).values()))])


def only_file(folder: Path) -> Path:
    """The one safetensors file of a folder; hidden files, as some systems leave beside others, are none."""
    files = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() == ".safetensors" and not path.name.startswith(".")
    ]
    if len(files) > 1 and any(path.name == SINGLE_NAME for path in files):
        return folder / SINGLE_NAME  # others are the same weights for other libraries
    if len(files) != 1:
        raise CheckpointError(
            f"{folder} holds {len(files)} safetensors files and no {INDEX_NAME}",
            hint="name the file itself, or fetch the index file that belongs to the shards",
        )
    return files[0]


def check_file(path: Path) -> None:
    """Raises CheckpointError unless there is a regular file at a path; reading a pipe would wait for ever."""
    if not os.path.lexists(path):
        raise CheckpointError(
            f"no checkpoint at {path}", hint="check the path: a .pth or safetensors file, or a folder of shards"
        )
    if not path.exists():
        raise CheckpointError(f"{path} is a link to nowhere", hint="fetch the file that it should lead to")
    if not is_plain_file(path):
        raise CheckpointError(f"{path} is {kind_of(path)}, not a checkpoint", hint="name a file, or a folder of shards")


def shards_of(index: object) -> list[str]:
    """Names of the shards in an index.

    Raises:
        ValueError: it is no index, or names a shard that is not beside it.
    """
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError("it has no weight_map from keys to files")
    odd = [name for name in files.values() if not stays_inside(name) or "/" in name]
    if odd:
        raise ValueError(f"it names the shard {str(odd[0])[:80]!r}, which is no file beside it")
    return sorted(set(files.values()))


def weight_map(index: Path) -> dict[str, str]:
    """Shard of each key, by an index file.

    Raises:
        CheckpointError: it is no index, or a shard is not beside it.
    """
    check_file(index)
    try:
        content: Any = read_json(index)
        shards = shards_of(content)
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error}", hint="fetch it again") from error
    for name in shards:
        if not (index.parent / name).exists():
            raise CheckpointError(
                f"{index} names the shard {name}, which is not beside it", hint="fetch it again: all shards are needed"
            )
    return content["weight_map"]

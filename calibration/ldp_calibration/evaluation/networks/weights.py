"""Weights of networks from a folder: safetensors, or pickles that are read without running them and converted once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldp_runtime.errors import ConfigError, IntegrityError, LdpError
from ldp_runtime.system.disk import full_disk_is_typed, write_durably, written_whole
from ldp_runtime.system.small_files import is_plain_file, read_json

from ldp_calibration.evaluation.networks.clip import VIT_H, VIT_L, ClipSize
from ldp_calibration.evaluation.networks.mask2former import SWIN_S, DetectorSize
from ldp_calibration.evaluation.networks.reward import VIT_L_BERT, RewardSize

#: Files of a folder of weights, by what they are.
DETECTOR = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth"
CLIP = "clip-vit-large-patch14.safetensors"
HPS_V21, HPS_V20 = "HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"
REWARD = "ImageReward.pt"
CLIP_WORDS, BERT_WORDS, CLASSES = "bpe_simple_vocab_16e6.txt.gz", "bert-base-uncased-vocab.txt", "object_names.txt"
#: Pictures whose scores are published, for the self-test.
HPS_EXAMPLE = "selftest/hpsv2-demo.jpg"
REWARD_EXAMPLES = tuple(f"selftest/imagereward-{i}.webp" for i in range(1, 5))
#: Beginnings of the published files' SHA-256, so far as they are known beforehand.
KNOWN = {
    DETECTOR: "743b7d99",
    CLIP_WORDS: "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    HPS_EXAMPLE: "798dfb5b",
    CLASSES: "608f6a0e5c8ca1c7a92b818430141fe268c85b7930b50f4160f1d65893b5bacd",
}
#: Folder of what was converted, in the folder of weights.
_CONVERTED = "converted"


@dataclass(frozen=True)
class Networks:
    """Sizes of the networks, and beginnings of their files' hashes; by default those that are published."""

    detector: DetectorSize = SWIN_S
    clip: ClipSize = VIT_L
    hps: ClipSize = VIT_H
    reward: RewardSize = VIT_L_BERT
    known: Mapping[str, str] = field(default_factory=lambda: KNOWN)


def existing(folder: Path | None, name: str, scorer: str) -> Path:
    """Path of a file of a folder of weights. Raises ConfigError if there is none."""
    fetching = f"ldp-export evaluate fetch --weights DIR {scorer}"
    if folder is None:
        raise ConfigError(
            f"{scorer} needs weights", hint=f"--weights DIR, a folder that holds {name}; {fetching} fills it"
        )
    path = folder / name
    if not is_plain_file(path) and not is_plain_file(_place(path)):
        raise ConfigError(f"{name} is not in {folder}", hint=f"copy it there, or: {fetching}")
    return path


def checked_hash(path: Path, known: Mapping[str, str]) -> str:
    """SHA-256 of a file. Raises IntegrityError if another one is known of it."""
    found = file_hash(path)
    _check_hash(path.name, found, known)
    return found


def _check_hash(name: str, found: str, known: Mapping[str, str]) -> None:
    expected = known.get(name, "")
    if not found.startswith(expected):
        raise IntegrityError(
            f"{name} is not the published file: its SHA-256 begins with {found[:8]}, expected {expected[:8]}",
            hint="copy or fetch the file anew",
        )


def file_hash(path: Path) -> str:
    """SHA-256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: Path, known: Mapping[str, str]) -> tuple[dict[str, Any], str]:
    """Tensors of a file of weights by name, and the SHA-256 of the file as it was published.

    A pickle is read as data alone, and converted to safetensors beside it, once; what was converted can replace it.

    Raises:
        IntegrityError: the file is damaged, another one, or holds more than tensors.
        ConfigError: the folder cannot be written to. CapacityError: its disk is full.
    """
    if path.suffix == ".safetensors":
        return _tensors(path), checked_hash(path, known)
    found = convert(path, known)
    return _tensors(_place(path)), found


def _place(path: Path) -> Path:
    return path.parent / _CONVERTED / f"{path.name}.safetensors"


def convert(path: Path, known: Mapping[str, str]) -> str:
    """Converts a pickle to safetensors unless that was done. Returns the pickle's SHA-256; raises as `read_weights`."""
    place = _place(path)
    if place.is_file():
        return _source_of(path, place, known)
    found = checked_hash(path, known)
    tensors = _unpickled(path)
    try:
        place.parent.mkdir(exist_ok=True)
        _write(place, path.name, found, tensors)
    except OSError as error:
        raise ConfigError(
            f"{path.name} cannot be converted into {place.parent}: {error}", hint="use a folder that can be written to"
        ) from error
    return found


def _write(place: Path, name: str, source: str, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    with full_disk_is_typed(place.parent):
        with written_whole(place) as scratch:
            save_file(tensors, scratch)
            record = {"source": name, "source_sha256": source, "sha256": file_hash(scratch)}
        write_durably(_record(place), f"{json.dumps(record, indent=1)}\n".encode())


def _record(place: Path) -> Path:
    return place.with_suffix(".json")


def _source_of(path: Path, place: Path, known: Mapping[str, str]) -> str:
    """SHA-256 of the pickle that a file was converted from, both being what they were then."""
    hint = f"delete {place} and {_record(place).name}, and run it again with {path.name}"
    try:
        record = read_json(_record(place))
        source, converted = str(record["source_sha256"]), str(record["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{_record(place)} cannot be read: {error}", hint=hint) from error
    if file_hash(place) != converted:
        raise IntegrityError(f"{place} was changed since it was converted", hint=hint)
    if path.is_file() and file_hash(path) != source:
        raise IntegrityError(f"{place} was converted from another {path.name} than there is", hint=hint)
    _check_hash(path.name, source, known)
    return source


def _tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # safetensors has an error type of its own in each version
        raise IntegrityError(f"{path} is no whole file of weights: {error}", hint="get the file anew") from error


def _unpickled(path: Path) -> dict[str, Any]:
    """Tensors of a pickle, each with memory of its own."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_archive(path))
    except Exception as error:  # damage shows as almost any error
        if isinstance(error, MemoryError | LdpError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IntegrityError(
            f"{path} is damaged, or holds more than weights: {reason}",
            hint="get the published file anew; nothing that runs code is read",
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise IntegrityError(f"{path} holds no weights by name", hint="get the published file anew")
    return {str(name): tensor.detach().clone().contiguous() for name, tensor in state.items()}


def _is_archive(path: Path) -> bool:
    """True for the format that can be mapped into memory; older ones are read whole."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"

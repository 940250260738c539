"""Fetching of scorers' weights and vocabularies into a folder: each file from its publisher, checked by its hash.

Nothing of them is part of this package. What the hub lists is pinned to the commit of the first fetch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldp_calibration.evaluation.networks import weights
from ldp_calibration.perceptual import VGG_WEIGHTS
from ldp_runtime.errors import ConfigError, HubError, suggestion
from ldp_runtime.system.disk import write_durably
from ldp_runtime.system.small_files import is_plain_file, read_json

from ldp_export.hub.client import HubFile, endpoint, list_repository
from ldp_export.hub.download import RemoteFile, download, require_below
from ldp_export.hub.raw import GITHUB, raw_errors
from ldp_export.progress import Progress, ProgressEvent, silent

#: Record of what was fetched, in the folder of weights.
RECORD = "fetched.json"
#: Most bytes of a file whose size no server lists beforehand.
_MOST_BYTES = 2 * 2**30
#: Server of the detector's weights.
OPENMMLAB = "https://download.openmmlab.com"
#: Server of torchvision's weights.
PYTORCH = "https://download.pytorch.org"


@dataclass(frozen=True)
class PublishedWeights:
    """A file that a scorer needs.

    Attributes:
        name: in the folder of weights.
        host: "hub", "github", "openmmlab" or "pytorch"; repository: on it, or "" where there are none.
        revision: commit; of the hub also a branch, which the first fetch pins.
        sha256: beginning of its hash, so far as it is known.
        size: megabytes, about.
    """

    name: str
    host: Literal["hub", "github", "openmmlab", "pytorch"]
    repository: str
    revision: str
    path: str
    licence: str
    size: float
    sha256: str = ""


def _hub(name: str, repository: str, revision: str, path: str, licence: str, size: float) -> PublishedWeights:
    return PublishedWeights(name, "hub", repository, revision, path, licence, size)


_CLIP = _hub(weights.CLIP, "openai/clip-vit-large-patch14", "main", "model.safetensors", "MIT", 1711)
_WORDS = PublishedWeights(
    weights.CLIP_WORDS,
    "github",
    "openai/CLIP",
    "d50d76daa670286dd6cacf3bcd80b5e4823fc8e1",
    "clip/bpe_simple_vocab_16e6.txt.gz",
    "MIT",
    1.4,
    weights.KNOWN[weights.CLIP_WORDS],
)
_DETECTOR = PublishedWeights(
    weights.DETECTOR,
    "openmmlab",
    "",
    "",
    f"mmdetection/v2.0/mask2former/mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/{weights.DETECTOR}",
    "Apache-2.0",
    276,
    weights.KNOWN[weights.DETECTOR],
)
_CLASSES = PublishedWeights(
    weights.CLASSES,
    "github",
    "djghosh13/geneval",
    "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
    "evaluation/object_names.txt",
    "MIT",
    0.001,
    weights.KNOWN[weights.CLASSES],
)
_REWARD_COMMIT = "8a4269cb91d7d287c5b2dcc0670cb99911f92c64"
_HPS, _REWARD = "xswu/HPSv2", "THUDM/ImageReward"
#: Files of each scorer, and of the pictures that `evaluate selftest` scores.
WEIGHTS: dict[str, tuple[PublishedWeights, ...]] = {
    "geneval": (_DETECTOR, _CLASSES, _CLIP, _WORDS),
    "hpsv2.1": (_hub(weights.HPS_V21, _HPS, "main", weights.HPS_V21, "Apache-2.0", 1973), _WORDS),
    "hpsv2.0": (_hub(weights.HPS_V20, _HPS, "main", weights.HPS_V20, "Apache-2.0", 1973), _WORDS),
    "imagereward": (
        _hub(weights.REWARD, _REWARD, _REWARD_COMMIT, weights.REWARD, "Apache-2.0", 1790),
        _hub(weights.BERT_WORDS, "google-bert/bert-base-uncased", "main", "vocab.txt", "Apache-2.0", 0.23),
    ),
    "clip": (_CLIP, _WORDS),
    "lpips": (
        PublishedWeights(
            VGG_WEIGHTS,
            "pytorch",
            "",
            "",
            f"models/{VGG_WEIGHTS}",
            "BSD-3-Clause code; weights trained on ImageNet",
            553,
            "397923af",
        ),
    ),
    "selftest": (
        PublishedWeights(
            weights.HPS_EXAMPLE,
            "github",
            "tgxs002/HPSv2",
            "866735ecaae999fa714bd9edfa05aa2672669ee3",
            "hpsv2/assets/demo_image.jpg",
            "Apache-2.0",
            0.1,
            weights.KNOWN[weights.HPS_EXAMPLE],
        ),
        *(
            PublishedWeights(
                name,
                "github",
                "THUDM/ImageReward",
                "c1392c6dd0fd6ecd6d416c96959ab744a6d0a8fb",
                f"assets/images/{i}.webp",
                "Apache-2.0",
                0.1,
            )
            for i, name in enumerate(weights.REWARD_EXAMPLES, start=1)
        ),
    ),
}

#: Weights that are fetched only by name: an earlier version, and one whose licence is of its code alone.
_NAMED_ONLY = ("hpsv2.0", "lpips")


@dataclass(frozen=True)
class AddressedFile:
    """A published file at an address, as GitHub or a server of downloads serves it; see `RemoteFile`."""

    published: PublishedWeights
    server: str

    @property
    def repository(self) -> str:
        return self.published.repository or self.published.host

    @property
    def path(self) -> str:
        return self.published.path

    @property
    def size(self) -> int | None:
        return None

    @property
    def most_bytes(self) -> int:
        return _MOST_BYTES

    @property
    def mirror(self) -> str:
        return "copy the file by hand"

    @property
    def expected(self) -> str:
        known = self.published.sha256
        return f"the published ones with SHA-256 {known}" if known else "a file"

    def url(self) -> str:
        parts = (self.server.rstrip("/"), self.published.repository, self.published.revision, self.published.path)
        return "/".join(part for part in parts if part)

    def headers(self) -> dict[str, str]:
        return {"Accept-Encoding": "identity"}

    def matches(self, path: Path) -> bool:
        return is_plain_file(path) and weights.file_hash(path).startswith(self.published.sha256)

    def is_complete(self, path: Path) -> bool:
        return self.matches(path)

    def errors(self) -> AbstractContextManager[None]:
        return raw_errors(self)


@dataclass(frozen=True)
class WeightsPlan:
    """Files to fetch into a folder: those that are there already, as the record says, and those that are not."""

    folder: Path
    files: tuple[PublishedWeights, ...]
    here: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "files": [
                {
                    "name": file.name,
                    "repository": file.repository or file.host,
                    "revision": file.revision or None,
                    "path": file.path,
                    "licence": file.licence,
                    "megabytes": file.size,
                    "sha256": file.sha256 or None,
                    "here": file.name in self.here,
                }
                for file in self.files
            ],
        }


def plan_weights(names: Sequence[str], folder: Path) -> WeightsPlan:
    """Files of scorers, each once, and which of them are in a folder as they were fetched.

    Raises:
        ConfigError: a name is no scorer with weights.
    """
    for name in names:
        if name not in WEIGHTS:
            raise ConfigError(
                f"there are no weights of {name!r} to fetch",
                hint=f"{suggestion(name, WEIGHTS)}there are {', '.join(WEIGHTS)}",
            )
    chosen = names or [name for name in WEIGHTS if name not in _NAMED_ONLY]
    files = tuple({file.name: file for name in chosen for file in WEIGHTS[name]}.values())
    record = read_record(folder)
    here = {file.name for file in files if _is_here(folder / file.name, record.get(file.name, {}))}
    return WeightsPlan(folder, files, frozenset(here))


def read_record(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Record of what was fetched into a folder, by name; empty if nothing was, or it is damaged."""
    try:
        found = read_json(folder / RECORD)
        return {str(name): dict(entry) for name, entry in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _is_here(path: Path, entry: Mapping[str, Any]) -> bool:
    return is_plain_file(path) and weights.file_hash(path) == entry.get("sha256")


def fetch_weights(
    plan: WeightsPlan,
    progress: Progress = silent,
    *,
    github: str = GITHUB,
    openmmlab: str = OPENMMLAB,
    pytorch: str = PYTORCH,
) -> None:
    """Downloads the files that are not here; stopped at any moment it goes on where it was.

    Raises:
        HubError: the connection failed, or a repository lacks a file.
        IntegrityError: a file has another hash. CapacityError: the disk is full.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    record = read_record(plan.folder)
    servers = {"github": github, "openmmlab": openmmlab, "pytorch": pytorch}
    for index, file in enumerate(plan.files):
        if file.name in plan.here:
            continue
        progress(ProgressEvent(file.name, index, len(plan.files), "started"))
        pinned = record.get(file.name, {}).get("revision", file.revision)
        remote = _listed(file, pinned) if file.host == "hub" else AddressedFile(file, servers[file.host])
        _receive(remote, plan.folder / file.name, plan.folder)
        record[file.name] = _entry(file, remote, plan.folder / file.name)
        write_durably(plan.folder / RECORD, f"{json.dumps(record, indent=1)}\n".encode())
        progress(ProgressEvent(file.name, index, len(plan.files), "finished", f"about {file.size:g} MB"))


def _listed(file: PublishedWeights, revision: str) -> HubFile:
    there = {one.path: one for one in list_repository(file.repository, revision)}
    if file.path not in there:
        raise HubError(
            f"{file.repository} at {revision} on {endpoint()} lacks {file.path}",
            hint="its publishers changed it; look for the file by hand, and copy it into the folder",
        )
    return there[file.path]


def _receive(remote: RemoteFile, place: Path, folder: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    require_below(place, folder)
    if place.exists() and not remote.matches(place):
        if not place.is_file():
            raise ConfigError(f"{place} is no file", hint="remove it, or name another folder with --weights")
        place.unlink()
    download(remote, place)


def _entry(file: PublishedWeights, remote: RemoteFile, place: Path) -> dict[str, Any]:
    return {
        "repository": file.repository or file.host,
        "revision": remote.commit if isinstance(remote, HubFile) else file.revision,
        "path": file.path,
        "licence": file.licence,
        "sha256": weights.file_hash(place),
        "bytes": place.stat().st_size,
    }

"""Benchmarks that others publish: their files, hashes and licences, and what `evaluate fetch` leaves of them here.

Nothing of them is part of this package. Commits and hashes are those that were read when the protocols were; a file of
another content is refused. Where a publisher gave no licence, fetching needs the user's word.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.system.small_files import parse_json, read_small

#: Record of what was fetched, beside the files.
RECORD = "fetched.json"
#: Most bytes of one file of a benchmark.
MOST_BYTES = 32 * 2**20


@dataclass(frozen=True)
class PublishedFile:
    """A file of a benchmark.

    Attributes:
        host: "github", or "datasets" for the hub's.
        revision: commit; of the hub also a branch, which the first fetch pins to its commit.
        sha256, git_id: of the content, so far as they are known beforehand.
    """

    host: Literal["github", "datasets"]
    repository: str
    revision: str
    path: str
    sha256: str | None = None
    git_id: str | None = None

    @property
    def name(self) -> str:
        """Name on this machine."""
        return self.path.rpartition("/")[2]

    @property
    def is_pinned(self) -> bool:
        return bool(self.sha256 or self.git_id)

    def is_content(self, content: bytes) -> bool:
        """True if a content has the hash that is known of it, or none is known."""
        if self.sha256 is not None:
            return hashlib.sha256(content).hexdigest() == self.sha256
        return self.git_id is None or git_id(content) == self.git_id


@dataclass(frozen=True)
class Published:
    """A benchmark that others publish.

    Attributes:
        licence: as its publishers state it.
        terms: what a user must accept before it is fetched, in words; "" where its licence permits any use.
        prompts: number of its prompts.
    """

    name: str
    files: tuple[PublishedFile, ...]
    licence: str
    prompts: int
    terms: str = ""


_GENEVAL = (
    PublishedFile(
        "github",
        "djghosh13/geneval",
        "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
        "prompts/evaluation_metadata.jsonl",
        sha256="5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
    ),
    PublishedFile(
        "github",
        "djghosh13/geneval",
        "af4902f24d3ca90ebbb446dd9891a59e0f82725f",
        "evaluation/object_names.txt",
        sha256="608f6a0e5c8ca1c7a92b818430141fe268c85b7930b50f4160f1d65893b5bacd",
    ),
)
_REWRITTEN = PublishedFile(
    "github",
    "Weepingchestnut/Lvar",
    "f94b7ecc2add1fa446ab8695826aec767ee1438c",
    "evaluation/gen_eval/prompt_rewrite_cache.json",
    sha256="7e3c1458f20965de454134cdb2074865f13b06e02d9ebe5338ae615dabe5c17c",
)
_DPG = PublishedFile(
    "github",
    "TencentQQGYLab/ELLA",
    "3c228f1dc6c4d3cad0a47493816151a419f14db3",
    "dpg_bench/dpg_bench.csv",
    git_id="98457fc9901943f51ff9a30367250fc292533bed",
)
_IMAGEREWARD = PublishedFile(
    "github",
    "THUDM/ImageReward",
    "c1392c6dd0fd6ecd6d416c96959ab744a6d0a8fb",
    "benchmark/benchmark-prompts.json",
    sha256="34682e824ebb3ad8e2531b3cde1b362dc72e1e29946ff6fab77bb49e9edb4b21",
)
#: Styles of HPSv2 in the order in which seeds count.
STYLES = ("anime", "concept-art", "paintings", "photo")
_HPSV2 = tuple(PublishedFile("datasets", "zhwang/HPDv2", "main", f"benchmark/{style}.json") for style in STYLES)

#: Benchmarks of others by their names.
PUBLISHED = {
    one.name: one
    for one in (
        Published("geneval", _GENEVAL, "MIT", 553),
        Published(
            "geneval-rewritten",
            (*_GENEVAL, _REWRITTEN),
            "MIT; rewritten prompts in an Apache-2.0 repository",
            553,
            terms="its prompts were rewritten by GPT-4o, whose terms of use limit what its texts may serve for",
        ),
        Published("dpg", (_DPG,), "Apache-2.0", 1065),
        Published(
            "hpsv2",
            _HPSV2,
            "none stated",
            3200,
            terms="its publishers state no licence (a mirror of it says Apache-2.0)",
        ),
        Published("imagereward", (_IMAGEREWARD,), "Apache-2.0", 100),
    )
}


def git_id(content: bytes) -> str:
    """Git's id of a content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def fetched_folder(root: Path | None = None) -> Path:
    """Folder below which fetched benchmarks lie: the user's, or the cache of this program."""
    if root is not None:
        return root
    import platformdirs

    return platformdirs.user_cache_path("ldp-export") / "benchmarks"


def fetched_files(published: Published, root: Path | None = None) -> dict[str, bytes]:
    """Content of the files of a benchmark by name, each checked against the hash that is known of it.

    Raises:
        ConfigError: the benchmark was not fetched.
        IntegrityError: a file is damaged, or was changed since it was fetched.
    """
    folder = fetched_folder(root) / published.name
    option = "" if root is None else f" --local-dir {root}"
    terms = f" --accept-license {published.name}" if published.terms else ""
    fetching = f"ldp-export evaluate fetch {published.name}{terms}{option}"
    if not (folder / RECORD).is_file():
        raise ConfigError(f"the prompts of {published.name} are not in {folder}", hint=f"fetch them: {fetching}")
    try:
        known = read_record(folder)
        found = {file.name: read_small(folder / file.name, MOST_BYTES) for file in published.files}
    except (OSError, ValueError) as error:
        raise IntegrityError(
            f"what was fetched of {published.name} into {folder} cannot be read: {error}", hint=f"again: {fetching}"
        ) from error
    changed = [
        file.name
        for file in published.files
        if not file.is_content(found[file.name]) or hashlib.sha256(found[file.name]).hexdigest() != known.get(file.path)
    ]
    if changed:
        raise IntegrityError(
            f"{', '.join(changed)} in {folder} are not what was published as {published.name}",
            hint=f"delete the folder, and fetch it again: {fetching}",
        )
    return found


def read_record(folder: Path) -> Mapping[str, str]:
    """SHA-256 of the files that were fetched into a folder, by their paths in the repository.

    Raises:
        ValueError: it is damaged. OSError: it cannot be read.
    """
    return {str(entry["path"]): str(entry["sha256"]) for entry in _record_entries(folder)}


def pinned_commits(folder: Path) -> Mapping[str, str]:
    """Commits of the repositories that were fetched into a folder; empty if none were, or the record is damaged."""
    try:
        return {str(entry["repository"]): str(entry["commit"]) for entry in _record_entries(folder)}
    except (OSError, ValueError):
        return {}


def _record_entries(folder: Path) -> list[dict[str, Any]]:
    content = parse_json(read_small(folder / RECORD))
    keys = {"path", "sha256", "repository", "commit"}
    try:
        entries = list(content["files"])
        if not all(isinstance(entry, dict) and keys <= entry.keys() for entry in entries):
            raise TypeError
    except (KeyError, TypeError) as error:
        raise ValueError(f"{RECORD} is damaged") from error
    return entries

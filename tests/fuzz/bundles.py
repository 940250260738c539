"""Corruptions of bundles: refused with a typed error, or without any effect.

A bundle that was sealed again is another bundle, not a damaged one: it may draw what it likes, but nothing that is not
finite, and it may not fail without a type.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.bundle.files import CURRENT, MANIFEST, VERSIONS, describe_files, report_path
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.errors import ConfigError, LdpError

from fuzz import Outcome
from fuzz.samples import FAMILIES, Family, bundle, copied, copy_of, damaged, drawn, mutated, picture, rewrite

HOW = ("file", "kind of file", "manifest", "sealed manifest", "sealed file", "pointer", "report", "stray")


@dataclass(frozen=True)
class Case:
    family: Family
    how: str
    seed: int


def cases(seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    while True:
        yield Case(rng.choice(FAMILIES), rng.choice(HOW), rng.randrange(2**32))


def run(case: Case) -> Outcome:
    with copied(case.family) as root:
        version = root / VERSIONS / (root / CURRENT).read_text().strip()
        _DAMAGE[case.how](random.Random(case.seed), case, root, version)
        try:
            image = drawn(root)
        except ConfigError:
            return "right" if not (root / CURRENT).exists() or case.how.startswith("sealed") else "untyped"
        except LdpError:
            return "right"
        if case.how.startswith("sealed"):
            return "right" if bool(torch.isfinite(image).all()) else "wrong accepted"
        return "right" if torch.equal(image, picture(case.family)) and case.how != "report" else "wrong accepted"


def _pick(rng: random.Random, version: Path) -> Path:
    return rng.choice(sorted(path for path in version.rglob("*") if path.is_file() and path.name != MANIFEST))


def _file(rng: random.Random, case: Case, root: Path, version: Path) -> None:
    path = _pick(rng, version)
    before = after = path.read_bytes()
    while after == before:
        after = damaged(rng, before)
    rewrite(path, after)


def _kind(rng: random.Random, case: Case, root: Path, version: Path) -> None:
    """Something that is no file, or nothing at all, in the place of a file."""
    path = rng.choice((_pick(rng, version), version / MANIFEST, root / CURRENT))
    path.unlink()
    makers = (
        lambda: None,
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("/dev/zero"),
    )
    rng.choice(makers)()


def _manifest(rng: random.Random, case: Case, root: Path, version: Path) -> None:
    path = version / MANIFEST
    content = path.read_bytes()
    if rng.random() < 0.5:
        value = json.loads(content)
        while value == json.loads(content):
            mutated(rng, value)
        rewrite(path, json.dumps(value).encode())
    else:
        rewrite(path, damaged(rng, content))


def _seal(root: Path, version: Path, value: Any) -> None:
    """Writes a manifest with the digest that it should have, if it can have one, under the name that goes with it."""
    try:
        value["digest"] = Manifest.model_validate(value).computed_digest()
    except Exception:  # no manifest: whatever reads it must say so
        rewrite(version / MANIFEST, json.dumps(value).encode())
        return
    rewrite(version / MANIFEST, json.dumps(value).encode())
    name = value["digest"][:16]
    version.rename(version.with_name(name))
    rewrite(root / CURRENT, f"{name}\n".encode())


def _sealed_manifest(rng: random.Random, case: Case, root: Path, version: Path) -> None:
    value = json.loads((version / MANIFEST).read_text())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        before = copy_of(value)
        try:
            mutated(rng, value)
        except (KeyError, IndexError, TypeError, OverflowError):
            value = before
    _seal(root, version, value)


def _sealed_file(rng: random.Random, case: Case, root: Path, version: Path) -> None:
    _file(rng, case, root, version)
    value = json.loads((version / MANIFEST).read_text())
    value["files"] = {n: e.model_dump() for n, e in describe_files(version, value["files"]).items()}
    _seal(root, version, value)


def _pointer(rng: random.Random, case: Case, root: Path, version: Path) -> None:
    before = after = (root / CURRENT).read_bytes()
    while after.split() == before.split():
        after = damaged(rng, before)
    rewrite(root / CURRENT, after)


def _report(rng: random.Random, case: Case, root: Path, version: Path) -> None:
    """The report of a rejected bundle, damaged: it still does not load."""
    path = report_path(root, bundle(case.family).manifest)
    text = json.dumps(json.loads(path.read_text()) | {"state": "rejected"}).encode()
    rewrite(path, rng.choice((text, damaged(rng, text))))


def _stray(rng: random.Random, case: Case, root: Path, version: Path) -> None:
    """A file that nobody listed: harmless, or refused beside an engine."""
    folder = rng.choice([version, *(path for path in version.iterdir() if path.is_dir())])
    (folder / rng.choice((".DS_Store", "README.md", "weights2.bin"))).write_text("x")


_DAMAGE = dict(
    zip(HOW, (_file, _kind, _manifest, _sealed_manifest, _sealed_file, _pointer, _report, _stray), strict=True)
)

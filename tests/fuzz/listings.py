"""Odd listings of a hub, and odd bodies: files below the folder asked for, as listed, or a typed error."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from helpers.hub_server import listing, serving
from helpers.samples import TRANSFORMER, random_vae, spec, write_text_encoder
from ldp_runtime.bundle.files import hash_file
from ldp_runtime.errors import LdpError

from fuzz import Outcome
from fuzz.samples import ODD, folder, mutated
from ldp_export.checkpoints.infinity import original_infinity_vae_state
from ldp_export.checkpoints.synthetic import write_checkpoint
from ldp_export.hub.fetch import fetch, plan_fetch
from ldp_export.models.registry import T5_FILES, InfinitySpec, infinity_hub

MODEL, ENCODER = "acme/tiny", "acme/t5"
_NAMES = (
    "w/../../victim.safetensors", "../victim.safetensors", "/victim.safetensors", "w/../victim.safetensors",
    "w//x.safetensors", "w/./x.safetensors", "w\\..\\..\\victim.safetensors", "w/..", "w/", "C:/victim.safetensors",
    "C:victim.safetensors", "w/\x00x.safetensors", "w/\nx.safetensors", "w/" + "x" * 300 + ".safetensors",
    "w/\ud800.safetensors", "W/Model.safetensors", "w/é.safetensors", "w/é.safetensors", "w", "w/ /x.safetensors",
    "w/... /x.safetensors", "tokenizer.json", "model.safetensors.partial",
    "w/a.safetensors/b.safetensors", "\u202e.json",
)  # fmt: skip
_HASHES = (
    "../../../../escaped/deep/er", "..", "/escaped", "", "0" * 39, "0" * 65, "g" * 40, "A" * 64, "0" * 40, "0" * 64, 7,
    None, [], "a/b", "..\\..\\escaped", "0" * 32 + "/" + "0" * 31,
)  # fmt: skip
_SIZES = (-1, 0, 1, 2**40, 2**63, 10**30, None, "7", 1.5, True, float("nan"), [])
HOW = ("name", "new name", "hash", "size", "commit", "anything", "text", "endless", "content", "none")


@dataclass(frozen=True)
class Case:
    how: str
    seed: int
    to_folder: bool


def cases(seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    while True:
        yield Case(rng.choice(HOW), rng.randrange(2**32), rng.random() < 0.6)


def run(case: Case) -> Outcome:
    rng, place = random.Random(case.seed), Path(tempfile.mkdtemp(prefix="hub-", dir=folder()))
    asked, outside = place / "a/b/c/asked", place / "a/b/c/victim.safetensors"
    asked.mkdir(parents=True)
    (asked / "victim.safetensors").write_bytes(b"someone's")
    for path in (outside, place / "a/victim.safetensors"):
        path.write_bytes(b"someone's")
    before = _tree(place, asked)
    environment = {"HF_HUB_CACHE": str(place / "cache" if case.to_folder else asked)}
    try:
        with serving(_published()) as hub, mock.patch.dict(os.environ, environment | {"HF_ENDPOINT": hub.url}):
            name = rng.choice((MODEL, ENCODER))
            _trouble(rng, case.how, name, hub)
            return _fetched(case, asked, lambda: _tree(place, asked) == before)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _fetched(case: Case, asked: Path, untouched: Any) -> Outcome:
    try:
        found = fetch(plan_fetch(tiny(), local_dir=asked if case.to_folder else None))
    except LdpError:
        ours = (asked / "victim.safetensors").read_bytes() == b"someone's"
        return ("right refused" if case.how == "none" else "right") if ours and untouched() else "wrong accepted"
    files = {path.name: hash_file(path) for path in found.transformer.iterdir() if path.name in _hashes()}
    good = files | {"vae": hash_file(found.vae)} == _hashes()
    ours = (asked / "victim.safetensors").read_bytes() == b"someone's"
    return "right" if good and ours and untouched() else "wrong accepted"


def _trouble(rng: random.Random, how: str, name: str, hub: Any) -> None:
    """Makes the server answer as the case says."""
    value = listing(name, _published()[name])
    entry: dict[str, Any] = rng.choice(value["siblings"])
    if how == "name":
        entry["rfilename"] = rng.choice((*_NAMES, *ODD))
    elif how == "new name":
        value["siblings"].append(copy.deepcopy(entry) | {"rfilename": rng.choice((*_NAMES, *ODD))})
    elif how == "hash":
        keyed = entry if "lfs" not in entry or rng.random() < 0.3 else entry["lfs"]
        keyed["blobId" if keyed is entry else "sha256"] = rng.choice(_HASHES)
    elif how == "size":
        keyed = entry.get("lfs", entry)
        keyed["size"] = rng.choice(_SIZES)
    elif how == "commit":
        value["sha"] = rng.choice((*_HASHES, *ODD))
    elif how == "anything":
        mutated(rng, value)
    elif how == "endless":
        hub.fault.endless = {
            rng.choice(("", "w/model.safetensors.index.json", "tiny_vae.pth", "config.json", *_shards()))
        }
    elif how == "content":
        chosen = {rng.choice(("tiny_vae.pth", "config.json", *_shards()))}
        setattr(hub.fault, rng.choice(("replace", "short")), chosen)
    text = json.dumps(value).encode()
    if how == "text":
        texts = (b"", b"null", b"[]", b"[" * 1000, b"[" * 10**6, text[:-9], b"\xff" + text, text * 2, b'"x"', b"{}")
        text = rng.choice(texts)
    hub.fault.listed = {name: text}


def _tree(place: Path, asked: Path) -> dict[str, bytes]:
    """Everything outside the folder asked for and the cache."""
    allowed = (asked, place / "cache")
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in place.rglob("*")
        if not any(path.is_relative_to(each) for each in allowed)
    }


def tiny() -> InfinitySpec:
    text = replace(T5_FILES, repository=ENCODER, revision="main")
    files = infinity_hub("w", "tiny_vae.pth", repository=MODEL, text_encoder=text, vae_bytes=None)
    return replace(spec(), name="infinity-tiny", hub=files)


@lru_cache
def _published() -> dict[str, Path]:
    """Repositories of a model in a folder of shards, and of a text encoder."""
    root = folder() / "published"
    model = root / "model"
    if not (root / "t5/tokenizer.json").exists():
        shutil.rmtree(root, ignore_errors=True)
        model.mkdir(parents=True)
        sharded = write_checkpoint(spec(), root / "sharded", shard_bytes=150_000)
        shutil.copytree(sharded.transformer, model / "w")
        torch.save({"vae": original_infinity_vae_state(random_vae())}, model / "tiny_vae.pth")
        write_text_encoder(root / "t5", TRANSFORMER.text_channels)
    return {MODEL: model, ENCODER: root / "t5"}


def _shards() -> list[str]:
    return sorted(f"w/{path.name}" for path in (_published()[MODEL] / "w").glob("*.safetensors"))


@lru_cache
def _hashes() -> dict[str, str]:
    model = _published()[MODEL]
    files = {path.name: hash_file(path) for path in (model / "w").iterdir()}
    return files | {"vae": hash_file(model / "tiny_vae.pth")}

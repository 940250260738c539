"""Small real bundles and checkpoints that cases are made from, built once a folder."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from helpers.hart_samples import HartGolden, known_instruction, write_qwen2
from helpers.samples import build_bundle, write_sources
from helpers.switti_samples import SwittiGolden, write_towers
from helpers.var_samples import VAR_MODELS, build_var_bundle
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle, open_bundle

from ldp_export.checkpoints.sources import Sources

Family = Literal["infinity", "var", "switti", "hart"]
FAMILIES: tuple[Family, ...] = ("infinity", "var", "switti", "hart")
#: Environment variable that names the folder in which samples stay between processes.
FOLDER = "FUZZ_FOLDER"


@lru_cache
def folder() -> Path:
    """Folder of the samples: that of the environment, or one for this process."""
    torch.set_num_threads(1)
    return Path(os.environ.get(FOLDER) or tempfile.mkdtemp(prefix="fuzz-"))


@lru_cache
def sources(family: Family) -> Sources:
    """Checkpoint of a family, in the original layout."""
    place = folder() / f"{family}_sources"
    if family == "var":
        return VAR_MODELS["a phi each, one block"].write(place)
    if family == "switti":
        place = place if place.exists() else write_towers(place)[0].parent
        return SwittiGolden("switti_small").sources.with_text((place / "clip_l", place / "clip_bigg"))
    if family == "hart":
        return HartGolden().sources.with_text((place if place.exists() else write_qwen2(place),))
    if place.exists():
        return Sources(place / "transformer.safetensors", place / "vae.safetensors", place / "text_encoder")
    return write_sources(place, text_encoder=True)


@lru_cache
def bundle(family: Family) -> Bundle:
    """Verified bundle of a family; must not be changed."""
    place = folder() / f"{family}_bundle"
    if (place / "CURRENT").exists():
        return open_bundle(place)
    if family == "switti":
        return SwittiGolden("switti_small").build(place, towers=sources(family).text_encoders)
    if family == "hart":
        with known_instruction():
            return HartGolden().build(place, text=sources(family).text_encoder)
    return build_bundle(sources(family), place) if family == "infinity" else build_var_bundle(sources(family), place)


def drawn(bundle: Bundle | Path) -> torch.Tensor:
    """An image of a bundle, always of the same request."""
    with Pipeline.load(bundle, threads=1, max_batch=1) as pipe:
        request: dict[str, Any] = {"prompt": "a red circle"}
        if pipe.manifest.model.family == "var":
            request = {"class_labels": 1}
        return pipe(**request, seed=3, output_type="torch").images


@lru_cache
def picture(family: Family) -> torch.Tensor:
    """Image of the undamaged bundle."""
    return drawn(bundle(family))


@contextmanager
def copied(family: Family) -> Iterator[Path]:
    """Copy of a family's bundle, whose files may be replaced but not written to: they are shared."""
    root = bundle(family).root
    assert root is not None
    place = Path(tempfile.mkdtemp(prefix="case-", dir=folder()))
    try:
        copy = place / "bundle"
        shutil.copytree(root, copy, copy_function=os.link, ignore=shutil.ignore_patterns("stages"))
        yield copy
    finally:
        shutil.rmtree(place, ignore_errors=True)


def rewrite(path: Path, content: bytes) -> None:
    """Replaces a file of a copy: the original keeps its content."""
    path.unlink()
    path.write_bytes(content)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Content with one wound: a bit, a byte, a cut, something more, something twice, zeros, or nothing."""
    size, at = len(content), rng.randrange(max(1, len(content)))
    wounds = (
        lambda: content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :] if size else b"x",
        lambda: content[:at] + rng.randbytes(8) + content[at + 8 :],
        lambda: content[:at],
        lambda: content + rng.randbytes(rng.choice((1, 64, 4096))),
        lambda: content[:at] + content[max(0, at - 100) : at] + content[at:],
        lambda: bytes(size),
        lambda: b"",
        lambda: rng.randbytes(min(size, 1000) or 1),
    )
    return rng.choice(wounds)()


#: Values that nobody expects of a field.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 10**30, -(2**63), 0.5, -0.0, 1e-300, 1e300, float("nan"),
    float("inf"), "", " ", "0", "..", "../../x", "/etc/passwd", "C:\\x", "a\\b", "a/./b", "a//b", "x\0y", "\u202e", "é",
    "x" * 300, "x" * 100_000, [], {}, [[]], [0], [-1], [10**9], {"a": 1}, [None], "float64", "int8", "infinity", "var",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside a value of JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield (*path, key)
        yield from places(each, (*path, key))


def copy_of(value: Any) -> Any:
    """A copy of a value of JSON."""
    return json.loads(json.dumps(value))


def mutated(rng: random.Random, value: Any) -> None:
    """Changes, deletes, moves or doubles something inside a value of JSON."""
    *outer, last = rng.choice(list(places(value)))
    holder = value
    for key in outer:
        holder = holder[key]
    what = rng.randrange(10)
    if what == 0:
        del holder[last]
    elif what == 1 and isinstance(holder, dict):
        holder[str(rng.choice(ODD))] = holder.pop(last)
    elif what == 2 and isinstance(holder, dict):
        holder[f"{last}_"] = holder[last]
    elif what == 3 and isinstance(holder[last], int | float):
        holder[last] = holder[last] * rng.choice((-1, 0, 2, 10, 1000, 0.5))
    elif what == 4:
        other = value
        for key in rng.choice(list(places(value))):
            other = other[key]
        holder[last] = copy_of(other)  # it may hold the place
    elif what == 5:
        nest: Any = holder[last]
        for _ in range(rng.choice((1, 100, 250))):  # three of the deepest can still be written
            nest = [nest]
        holder[last] = nest
    else:
        holder[last] = rng.choice(ODD)

"""Odd checkpoints and text encoders: refused with a typed error, or read as what they hold."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import LdpError

from fuzz import Outcome
from fuzz.samples import ODD, Family, damaged, folder, mutated, places, sources
from ldp_export.checkpoints.clip import load_clip
from ldp_export.checkpoints.convert import convert, plan_conversion
from ldp_export.checkpoints.files.tensors import read_state, save_state
from ldp_export.checkpoints.hart import load_hart
from ldp_export.checkpoints.infer import infer_spec
from ldp_export.checkpoints.infinity import load_infinity, load_infinity_vae
from ldp_export.checkpoints.sources import Sources
from ldp_export.checkpoints.switti import load_switti
from ldp_export.checkpoints.t5 import load_text_encoder
from ldp_export.checkpoints.var import load_var, load_var_vae

State = dict[str, torch.Tensor]
PARTS = (
    "infinity",
    "infinity vae",
    "var",
    "var vae",
    "switti",
    "hart",
    "hart vae",
    "text encoder",
    "text tower",
    "convert",
)
#: Parts beside whose file lies a configuration.
_CONFIGURED = ("switti", "hart")
#: Parts that are a folder.
_FOLDERS = ("text encoder", "text tower")
HOW = ("bytes", "header", "keys", "types", "shapes", "container", "config", "kind of file", "beside", "name", "shards")


@dataclass(frozen=True)
class Case:
    part: str
    how: str
    seed: int


def cases(seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    while True:
        yield Case(rng.choice(PARTS), rng.choice(HOW), rng.randrange(2**32))


def run(case: Case) -> Outcome:
    place = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=folder()))
    rng = random.Random(case.seed)
    _copy_settings(case.part, place)
    try:
        path, same = _DAMAGE[case.how](rng, case.part, place)
        try:
            found = _read(case.part, path, place)
        except LdpError:
            return "right refused" if same is True else "right"
        if same is False:
            return "wrong accepted"
        return "right" if _equal(found, _original(case.part)) or same is None else "wrong accepted"
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _read(part: str, path: Path, place: Path) -> State:
    """Values of a part as a build would use them."""
    if part == "text encoder":
        return dict(load_text_encoder(path).module.state_dict())
    if part == "text tower":
        return dict(load_clip((path, sources("switti").text_encoders[1])).module.state_dict())
    if part == "convert":
        return read_state(convert(plan_conversion(path, place / "converted", "float32")))
    whole = sources(_family(part))
    given = Sources(whole.transformer, path) if part.endswith("vae") else Sources(path, whole.vae)
    given.check()
    given.hashes()
    spec: Any = infer_spec(given)
    loaders: dict[str, Callable[..., torch.nn.Module]] = {
        "infinity": load_infinity, "infinity vae": load_infinity_vae, "var": load_var, "var vae": load_var_vae,
        "switti": load_switti, "hart": load_hart, "hart vae": load_var_vae,
    }  # fmt: skip
    return dict(loaders[part](path, spec.vae if part.endswith("vae") else spec.transformer).state_dict())


def _family(part: str) -> Family:
    if part.startswith("hart"):
        return "hart"
    named: Family = "var" if part.startswith("var") else "infinity"
    return "switti" if part in ("switti", "text tower") else named


def _path(part: str) -> Path:
    whole = sources(_family(part))
    if part in _FOLDERS:
        return whole.text_encoders[0]
    return whole.vae if part.endswith("vae") else whole.transformer


@lru_cache
def _original(part: str) -> State:
    place = Path(tempfile.mkdtemp(prefix="original-", dir=folder()))
    return _read(part, _path(part), place)


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@lru_cache
def _state(part: str) -> State:
    """Tensors of a part as its file holds them, without the mask of training, which is not finite."""
    return {key: value for key, value in read_state(_path(part)).items() if key != "attn_bias_for_masking"}


#: A path to read, and whether it must be accepted with the original's values (True), refused (False), or either.
Made = tuple[Path, bool | None]


def _written(part: str, place: Path, state: State) -> Path:
    """A state as safetensors, in the folder of a text encoder if it is one."""
    if part not in _FOLDERS:
        save_state(state, place / "model.safetensors")
        return place / "model.safetensors"
    shutil.copytree(_path(part), place / "encoder")
    (place / "encoder/model.safetensors").unlink()
    save_state(state, place / "encoder/model.safetensors")
    return place / "encoder"


def _copy_settings(part: str, place: Path) -> None:
    """Copies what says beside the tensors what they do not: Switti's attention, HART's heads."""
    if part in _CONFIGURED:
        shutil.copy(_path(part).parent / "config.json", place / "config.json")


def _file_of(path: Path) -> Path:
    return path / "model.safetensors" if path.is_dir() else path


def _bytes(rng: random.Random, part: str, place: Path) -> Made:
    """Damage anywhere: what is read must be refused, or be values that were changed."""
    path = _written(part, place, _state(part))
    content = _file_of(path).read_bytes()
    _file_of(path).write_bytes(damaged(rng, content))
    return path, None


def _header(rng: random.Random, part: str, place: Path) -> Made:
    path = _written(part, place, _state(part))
    content = _file_of(path).read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    try:
        mutated(rng, header)
        text = json.dumps(header).encode()
    except (KeyError, IndexError, TypeError, OverflowError, ValueError):
        text = b"[" * 10_000
    length = rng.choice((len(text), len(text), len(text), 2**63, 2**64 - 1, 0))
    _file_of(path).write_bytes(struct.pack("<Q", length) + text + content[8 + size :])
    return path, None


def _keys(rng: random.Random, part: str, place: Path) -> Made:
    """A key that is missing, too much, renamed, or counted on."""
    state = dict(_state(part))
    key = rng.choice(sorted(state))
    what = rng.randrange(5)
    if what == 0:
        del state[key]
        return _written(part, place, state), None if _ignored(key) or part == "convert" else False
    extra = (
        "blocks.999999999.attn.x", "block_chunks.999999999.module.0.x", "blocks.99999999999999999999.x", "encoder.x",
        "encoder.block.7.layer.0.x", "encoder.down.999999999.x", "quantize.quant_resi.qresi_ls.999999999.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias2.weight", "blocks.٣.x", "blocks.00.x",
    )  # fmt: skip
    if what == 1:
        name = rng.choice(extra)
        state[name] = torch.zeros(1)
        # The conversion keeps what it is given; a text encoder is taken from a whole model's file.
        # So it is of a T5 model's; of CLIP's, only what towers of pictures are called is left aside.
        either = part == "convert" or (part == "text encoder" and not name.startswith("encoder."))
        return _written(part, place, state), None if either else False
    state[rng.choice((f"{key}_", f"module.{key}", key.replace(".", "..", 1), key.upper()))] = state.pop(key)
    return _written(part, place, state), None if _ignored(key) or part == "convert" else False


#: Names in a CLIP model of what is not its text tower.
_ASIDE = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")


def _ignored(key: str) -> bool:
    """True for keys that are not needed, or whose lack another name makes up for."""
    return key.startswith(("lvl_1L", "attn_bias")) or "lfq.mask" in key or "zero_k" in key or "ema_vocab" in key or (
        "embed_tokens" in key or key == "shared.weight" or key.startswith(_ASIDE) or key.endswith("position_ids")
    )  # fmt: skip


def _types(rng: random.Random, part: str, place: Path) -> Made:
    state = dict(_state(part))
    key = rng.choice([key for key in state if not _ignored(key)])
    kinds = (torch.complex64, torch.uint16, torch.float8_e5m2, torch.int64, torch.bool, torch.uint8)
    state[key] = state[key].to(rng.choice(kinds))
    torch.save(state, place / "odd.pth")
    if part in _FOLDERS:
        return place / "odd.pth", False
    return place / "odd.pth", None if part == "convert" else False


def _shapes(rng: random.Random, part: str, place: Path) -> Made:
    state = dict(_state(part))
    key = rng.choice([key for key in state if not _ignored(key) and state[key].numel() > 1])
    changes = (
        lambda t: t[:-1], lambda t: torch.cat((t, t)), lambda t: t[:0], lambda t: t.flatten()[None, None],
        lambda t: t.new_zeros((0, 10**9)), lambda t: t.flatten()[0],
    )  # fmt: skip
    state[key] = rng.choice(changes)(state[key]).contiguous()
    return _written(part, place, state), None


def _container(rng: random.Random, part: str, place: Path) -> Made:
    """Weights inside what training writes."""
    if part in _FOLDERS:
        return _bytes(rng, part, place)
    state = _state(part)
    vae = part.endswith("vae")
    known = (
        [("state_dict",), ("trainer", "vae_local"), ("vae",)] if vae else [("state_dict",), ("trainer", "var_wo_ddp")]
    )
    unknown: list[tuple[str, ...]] = [("ema",), ("trainer", "x"), ("a", "b", "c")]
    keys, same = rng.choice([(k, True) for k in known] + [(k, False) for k in unknown])
    value: Any = state
    for key in reversed(keys):
        value = {key: value, "epoch": 3, "args": {"lr": 0.1}}
    torch.save(value, place / "training.pth")
    return place / "training.pth", same


def _config(rng: random.Random, part: str, place: Path) -> Made:
    if part not in (*_FOLDERS, *_CONFIGURED):
        return _keys(rng, part, place)
    written = _written(part, place, _state(part))
    path = (written.parent if part in _CONFIGURED else written) / "config.json"
    value = json.loads(path.read_text())
    what = rng.randrange(4) if part in _FOLDERS else 2
    if what == 0:
        holder, name = (value["text_config"], "num_hidden_layers") if part == "text tower" else (value, "num_layers")
        holder[name] = rng.choice((0, -1, 3, 10_000_000, 2**63, "1", None, 1.5, True, []))
        same = None if holder[name] is True else False
    elif what == 1:
        value["model_type"], same = rng.choice(("umt5", "mt5", "bert", "", None, 5, "T5")), False
    else:
        key = rng.choice(sorted(value))
        value[key], same = rng.choice(ODD), None
    text = json.dumps(value)
    if rng.random() < 0.1:
        text, same = rng.choice(("[" * 1000, "[" * 10**6, "", "null", text[:-5], "{" + text, " " * 17 * 2**20)), False
    path.write_text(text)
    return written, same


def _kind(rng: random.Random, part: str, place: Path) -> Made:
    """Something that is no file."""
    path = place / "odd.safetensors"
    makers = (
        lambda: os.mkfifo(path), path.mkdir, lambda: path.symlink_to("nowhere"), lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("/dev/zero"), lambda: path.symlink_to("/dev/null"), lambda: None, path.touch,
    )  # fmt: skip
    rng.choice(makers)()
    return path, False


def _beside(rng: random.Random, part: str, place: Path) -> Made:
    """Hidden files and notes beside a folder's one file change nothing."""
    if part in _FOLDERS:
        path = _written(part, place, _state(part))
    else:
        path = place / "folder"
        path.mkdir()
        _copy_settings(part, path)
        save_state(_state(part), path / "model.safetensors")
    for name in rng.sample(("._model.safetensors", ".DS_Store", "README.md", ".x.safetensors"), 2):
        (path / name).write_bytes(b"\0\5\x16\7" * 30)
    return path, True


def _name(rng: random.Random, part: str, place: Path) -> Made:
    """Safetensors under another ending, and the reverse."""
    if part in _FOLDERS:
        return _bytes(rng, part, place)
    path = place / f"weights{rng.choice(('.ckpt', '.pth', '.SAFETENSORS', '.bin', '', '.safetensors'))}"
    if rng.random() < 0.5:
        torch.save(_state(part), path, _use_new_zipfile_serialization=rng.random() < 0.7)
    else:
        save_state(_state(part), place / "x")
        (place / "x").rename(path)
    return path, True


def _shards(rng: random.Random, part: str, place: Path) -> Made:
    """A folder of two shards whose index is odd."""
    if part in _FOLDERS:
        return _config(rng, part, place)
    state, path = _state(part), place / "shards"
    path.mkdir()
    _copy_settings(part, path)
    names = sorted(state)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for name, keys in halves.items():
        save_state({key: state[key] for key in keys}, path / name)
    index: Any = {"metadata": {}, "weight_map": {key: name for name, keys in halves.items() for key in keys}}
    index_path, same = path / "model.safetensors.index.json", True
    if rng.random() < 0.8:
        same = None
        for _ in range(3):
            if list(places(index)):
                mutated(rng, index)
    index_path.write_text(json.dumps(index))
    return path, same


_DAMAGE: dict[str, Callable[[random.Random, str, Path], Made]] = dict(
    zip(
        HOW,
        (_bytes, _header, _keys, _types, _shapes, _container, _config, _kind, _beside, _name, _shards),
        strict=True,
    )
)

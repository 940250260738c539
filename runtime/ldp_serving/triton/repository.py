"""Model repository of Triton: a bundle, the model that draws with it, and the configuration of both.

    DIR/NAME/
      config.pbtxt      inputs, outputs, and the settings, which may be edited
      1/model.py        what Triton's Python backend runs; needs `ldp_runtime` and `ldp_serving`
      1/bundle/         the bundle's current version, its report and its saved policies

A repository is complete in itself: it may be moved, or put into an image.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from ldp_runtime.bundle.files import CURRENT, MANIFEST, VERSIONS, Bundle, report_path
from ldp_runtime.bundle.saved_policies import saved_folder
from ldp_runtime.errors import ConfigError
from ldp_runtime.system.disk import is_full, put_in_place, require_room, same_disk, scratch_path, sync, sync_tree

from ldp_serving.front.loading import ModelOptions
from ldp_serving.hooks import load_hooks
from ldp_serving.model import check_servable
from ldp_serving.triton.fields import OUTPUTS, inputs_of
from ldp_serving.triton.settings import to_parameters

#: Folder of the bundle in a model's version.
BUNDLE = "bundle"
#: Version of the model that is written.
_VERSION = "1"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def write_model(opened: Bundle, repository: Path, options: ModelOptions, name: str, overwrite: bool = False) -> Path:
    """Writes a model into a repository, whole or not at all; returns its folder.

    Files of the bundle are linked where the disk can, since they never change; otherwise they are copied.

    Args:
        opened: a bundle that was checked.
        repository: is made if it is missing; other models in it stay.
        name: of the model in Triton.
        overwrite: replaces a model of this name. Files that others put beside its `config.pbtxt` stay.

    Raises:
        ConfigError: the bundle or an option cannot be served, or the model is there already.
        CapacityError: the disk has too little room.
    """
    place = repository / name
    _check(opened, place, options, name, overwrite)
    size = sum(entry.size for entry in opened.manifest.files.values())
    if not same_disk(opened.folder, repository):
        require_room(repository, size, "the model", hint="name another --output")
    repository.mkdir(parents=True, exist_ok=True)
    scratch = scratch_path(repository)
    try:
        version = scratch / _VERSION
        version.mkdir(parents=True)
        (scratch / "config.pbtxt").write_text(config(opened, options), encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("model.py"), version / "model.py")
        _copy_bundle(opened, version / BUNDLE)
        sync_tree(scratch)
        put_in_place(scratch, place)
        sync(repository)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place


def config(opened: Bundle, options: ModelOptions) -> str:
    """Configuration of a model, as text of the protocol buffer `ModelConfig`."""
    tensors = (("input", inputs_of(opened.manifest), " optional: true"), ("output", OUTPUTS, ""))
    parts = ['backend: "python"', "max_batch_size: 0", "model_transaction_policy { decoupled: true }"]
    parts += [_tensors(kind, types, more) for kind, types, more in tensors]
    # One instance: its scheduler joins requests itself.
    device = "KIND_GPU gpus: [ 0 ]" if options.device.startswith("cuda") else "KIND_CPU"
    parts.append(f"instance_group [ {{ count: 1 kind: {device} }} ]")
    parts += [
        f"parameters {{ key: {_quoted(name)} value {{ string_value: {_quoted(text)} }} }}"
        for name, text in to_parameters(options).items()
    ]
    return "\n".join(parts) + "\n"


def _check(opened: Bundle, place: Path, options: ModelOptions, name: str, overwrite: bool) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a model of Triton", hint="letters, digits, '.', '_' and '-', as in --name shapes"
        )
    if opened.state == "rejected":
        raise ConfigError(f"{opened.folder} was rejected by verify", hint="`ldp-export verify` says why; rebuild it")
    check_servable(opened.manifest, opened.root, (options.policy, *options.allow_policy))
    if options.hooks is not None:
        load_hooks(options.hooks)
    if os.path.lexists(place) and not (place / "config.pbtxt").is_file():
        raise ConfigError(f"{place} is there already, and is no model of Triton", hint="name another --output")
    if os.path.lexists(place) and not overwrite:
        raise ConfigError(
            f"{place} is there already", hint="add --overwrite to replace it, or give this one another --name"
        )


def _tensors(kind: str, types: Mapping[str, str], more: str) -> str:
    lines = [f"  {{ name: {_quoted(name)} data_type: {dtype} dims: [ 1 ]{more} }}" for name, dtype in types.items()]
    return f"{kind} [\n" + ",\n".join(lines) + "\n]"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _copy_bundle(opened: Bundle, root: Path) -> None:
    """Copies the version that serves, in the layout of a build's output; its files are linked where possible."""
    manifest = opened.manifest
    folder = root / VERSIONS / manifest.version
    for name in (*manifest.files, MANIFEST):
        _link(opened.path(name), folder / name)
    (root / CURRENT).write_text(f"{manifest.version}\n", encoding="utf-8")
    if opened.root is None:
        return
    saved = saved_folder(opened.root, manifest)
    beside = [report_path(opened.root, manifest), *(sorted(saved.glob("*.json")) if saved.is_dir() else [])]
    for path in filter(Path.is_file, beside):
        target = root / path.relative_to(opened.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError as error:
        if is_full(error):
            raise
        shutil.copyfile(source, target)

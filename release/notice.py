"""NOTICE: what the archives ship, and licences of what is installed beside them, from the packages' metadata."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

_HEAD = """\
ldp-export
Copyright The ldp-export authors

Licensed under the Apache License, Version 2.0 (LICENSE).

Shipped with it, under the same licence: the weights, the tokenizer and the text encoder of the embedded model
`infinity-shapes`, trained by the authors with `training/` on drawings that `ldp_calibration.shapes` generates. No
weights, code or data of others are shipped. Weights that `ldp-export fetch` downloads have licences of their own, which
`ldp-export models` names.

Not shipped, but installed beside it where an extra of `pyproject.toml` asks for it, under licences of their own (as the
packages' metadata name them):

"""
#: Packages that are not installed where the notice is written, as builds for other machines, and the installed package
#: of the same project.
_SAME_PROJECT = {
    "onnxruntime-gpu": "onnxruntime",
    "tensorrt-cu12": "tensorrt-rtx-cu13",
    "tensorrt-cu13": "tensorrt-rtx-cu13",
}
_CLASSIFIER = "License :: OSI Approved :: "


def requirements(pyproject: Path) -> list[str]:
    """Names of the packages that the distribution and its extras require, sorted, but those of developers' tools."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [
        *project["dependencies"],
        *(text for name in extras if name not in ("dev", "docs", "release") for text in extras[name]),
    ]
    names = {re.split(r"[\s\[<>=!~;]", text, maxsplit=1)[0].lower() for text in texts}
    return sorted(names - {project["name"]})


def licence(name: str) -> str | None:
    """Licence of an installed package, from its metadata; None if it is not installed.

    Raises:
        ValueError: the metadata name no licence.
    """
    try:
        about = metadata(name)
    except PackageNotFoundError:
        return None
    classified = [c.removeprefix(_CLASSIFIER) for c in about.get_all("Classifier") or [] if c.startswith(_CLASSIFIER)]
    said = (about.get("License") or "").strip().splitlines()
    found = about.get("License-Expression") or ", ".join(classified) or (said[0] if said else "")
    if not found:
        raise ValueError(f"the metadata of {name} name no licence")
    return found


def notice(pyproject: Path) -> str:
    """Text of the notice.

    Raises:
        ValueError: a package is not installed, or names no licence.
    """
    lines = []
    for name in requirements(pyproject):
        found = f"as {_SAME_PROJECT[name]}" if name in _SAME_PROJECT else licence(name)
        if found is None:
            raise ValueError(f"{name} is not installed, so its licence is not known here")
        lines.append(f"    {name:<20} {found}\n")
    return _HEAD + "".join(lines)

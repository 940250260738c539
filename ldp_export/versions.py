"""Versions of what is installed, for reports."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

#: What an exported graph depends on; all but PyTorch come with the extra `build`.
TOOLCHAIN = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers")


def installed(packages: Iterable[str]) -> dict[str, str]:
    """The version of Python, and of those packages that are here."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

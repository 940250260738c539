"""Versions of installed packages, for reports."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

#: Packages that an exported graph depends on; all but PyTorch come with the extra `build`.
TOOLCHAIN = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers")


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Version of Python, and of those of the packages that are installed."""
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

"""Commands that install what is missing, and what is said of PyTorch without importing it."""

from __future__ import annotations

import importlib.metadata
import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

_NAME = "ldp-export"


def install(extra: str) -> str:
    """Command that installs an extra of this package: from the checkout, where the package comes from one."""
    published = f"pip install '{_NAME}[{extra}]'"
    folder = checkout()
    if folder is None:
        return published
    editable = "-e " if _is_editable() else ""
    return f"pip install {editable}'{folder}[{extra}]' (where it is published: {published})"


@cache
def checkout() -> Path | None:
    """Folder that this package was installed from, if it was not from an index."""
    entry = _origin()
    return Path(unquote(urlparse(entry["url"]).path)) if "dir_info" in entry else None


def _is_editable() -> bool:
    return bool(_origin().get("dir_info", {}).get("editable"))


def _origin() -> dict[str, Any]:
    """Place that this package was installed from, as pip noted it; empty if from an index, or not at all."""
    try:
        return json.loads(importlib.metadata.distribution(_NAME).read_text("direct_url.json") or "{}")
    except importlib.metadata.PackageNotFoundError:
        return {}


def pytorch_build() -> tuple[str, str | None]:
    """Version of PyTorch, and the CUDA version that it was built for; None: for none.

    Read from its files, since importing it takes seconds.
    """
    torch = importlib.metadata.distribution("torch")
    try:
        text = Path(str(torch.locate_file(Path("torch", "version.py")))).read_text(encoding="utf-8")
    except OSError:
        text = ""
    cuda = re.search(r"^cuda\b.*=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return torch.version, cuda.group(1) if cuda else None

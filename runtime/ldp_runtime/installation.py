"""Commands that install what is missing, and what is said of PyTorch without importing it."""

from __future__ import annotations

import importlib.metadata
import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

_NAME = "ldp-export"


def install(extra: str) -> str:
    """Command that installs an extra of this package: from the checkout, where the package comes from one."""
    published = f"pip install '{_NAME}[{extra}]'"
    folder = checkout()
    return published if folder is None else f"pip install -e '{folder}[{extra}]' (where it is published: {published})"


@cache
def checkout() -> Path | None:
    """Folder that this package was installed from, if it was not from an index."""
    try:
        origin = importlib.metadata.distribution(_NAME).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    entry = json.loads(origin or "{}")
    return Path(unquote(urlparse(entry["url"]).path)) if "dir_info" in entry else None


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

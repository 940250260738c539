"""What is said of installations: commands that can be pasted, and PyTorch's build without importing it."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from ldp_runtime.system import installation


class Fake:
    """A distribution whose origin is given."""

    def __init__(self, origin: dict[str, object] | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'ldp-export[build]'"),
        ({"url": "https://x/y.whl", "archive_info": {}}, "pip install 'ldp-export[build]'"),
        ({"url": "file:///a/my%20checkout", "dir_info": {"editable": True}}, "pip install -e '/a/my checkout[build]'"),
        ({"url": "file:///a/my%20checkout", "dir_info": {}}, "pip install '/a/my checkout[build]'"),
    ],
)
def test_extras_are_quoted_and_come_from_where_the_package_came(
    origin: dict[str, object] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Fake(origin))
    installation.checkout.cache_clear()
    try:
        assert installation.install("build").startswith(command)
        assert "'ldp-export[build]'" in installation.install("build")
    finally:
        installation.checkout.cache_clear()


def test_pytorch_is_read_as_it_says_of_itself() -> None:
    assert installation.pytorch_build() == (torch.__version__, torch.version.cuda)


def test_a_cuda_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Build:
        version = "2.13.0+cu130"

        def locate_file(self, path: Path) -> Path:
            return tmp_path / path.name

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Build())
    (tmp_path / "version.py").write_text("from typing import Optional\ncuda: Optional[str] = '13.0'\nhip = None\n")
    assert installation.pytorch_build() == ("2.13.0+cu130", "13.0")

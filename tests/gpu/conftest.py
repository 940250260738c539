"""Tests for a machine with an NVIDIA GPU: `make gpu-test`. Each part skips by itself where what it needs is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU and a PyTorch that was built with CUDA")
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    """Float32 means float32 in PyTorch's own products too."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

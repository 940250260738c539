"""PyTorch's number of threads, which is a setting of the calling thread."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Generator[None]:
    """Sets the number for an engine's call: between calls, the pipeline keeps it at one. None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""PyTorch's number of threads, which is a setting of the calling thread."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from ldp_runtime.engines.hardware import usable_cpus


def default_torch_threads() -> int:
    """PyTorch's number on the calling thread, but no more than this process may use."""
    return min(torch.get_num_threads(), usable_cpus())


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

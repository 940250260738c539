"""Detects that memory ran out, however PyTorch or Python reports it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from ldp_runtime.errors import CapacityError

_WORDS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


@contextmanager
def capacity_errors(doing: str) -> Generator[None]:
    """Turns the errors raised when memory runs out into a CapacityError.

    Args:
        doing: the action that needed memory, for the message.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise CapacityError(
            f"out of memory while {doing}: {str(error).strip() or repr(error)}",
            hint="draw fewer images at a time, or load with a lower max_batch",
        ) from error


def _is_out_of_memory(error: Exception) -> bool:
    # PyTorch has a type for its own allocator on GPUs, and none for its CPU allocator nor for CUDA's libraries.
    typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return typed or any(words in str(error) for words in _WORDS)

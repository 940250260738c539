"""Memory that ran out, whichever way PyTorch or Python says so."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from ldp_runtime.errors import CapacityError


@contextmanager
def capacity_errors(doing: str) -> Generator[None]:
    """Turns what is raised when memory runs out into a CapacityError.

    Args:
        doing: what was being done, for the message.
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
    # For its CPU allocator, PyTorch has no type.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)

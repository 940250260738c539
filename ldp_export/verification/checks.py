"""Checks of a verification: comparisons of what engines gave with what they should have given."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from ldp_runtime.errors import NonFiniteError
from ldp_runtime.numerics import all_finite


@dataclass(frozen=True)
class Check:
    """One comparison of a measured error with its limit."""

    name: str
    passed: bool
    measured: float
    limit: float
    detail: str = ""


#: Receives each check when it is done.
Add = Callable[[Check], None]


@contextmanager
def bad_numbers_fail(name: str, add: Add) -> Generator[None]:
    """Turns the error that NaN or infinity raises within the context into a failed check."""
    try:
        yield
    except NonFiniteError as error:
        add(Check(f"{name}, finite", False, float("inf"), 0.0, error.message))


def compare(name: str, got: torch.Tensor, expected: torch.Tensor, limit: float) -> Check:
    """Check of the largest absolute difference; NaN, infinity and wrong shapes fail."""
    got, expected = got.cpu(), expected.cpu()
    if got.shape != expected.shape:
        return Check(name, False, float("inf"), limit, f"shape {tuple(got.shape)}, expected {tuple(expected.shape)}")
    difference = float((got.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    finite = all_finite(got) and all_finite(expected)
    return Check(name, finite and difference <= limit, difference if finite else float("inf"), limit)


def compare_rms(name: str, got: torch.Tensor, expected: torch.Tensor, limit: float) -> Check:
    """Check of the root mean square of the difference; NaN and infinity fail."""
    difference = float((got.cpu().double() - expected.cpu().double()).square().mean().sqrt())
    return Check(name, difference <= limit, difference, limit)

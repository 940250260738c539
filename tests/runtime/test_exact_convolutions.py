"""Which arithmetic cuDNN is told to use; the switches need no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ldp_runtime.numerics import exact_convolutions

BACKENDS: Any = torch.backends
CONVOLUTIONS = BACKENDS.cudnn.conv
GPU = torch.device("cuda")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = BACKENDS.fp32_precision, CONVOLUTIONS.fp32_precision
    yield
    BACKENDS.fp32_precision, CONVOLUTIONS.fp32_precision = before


def test_exact_for_the_duration() -> None:
    CONVOLUTIONS.fp32_precision = "tf32"
    with exact_convolutions(GPU):
        assert CONVOLUTIONS.fp32_precision == "ieee"
        torch.nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))  # reads the switches on a CPU too
    assert CONVOLUTIONS.fp32_precision == "tf32"
    with exact_convolutions(torch.device("cpu")):
        assert CONVOLUTIONS.fp32_precision == "tf32"


def test_after_an_error() -> None:
    CONVOLUTIONS.fp32_precision = "tf32"
    with pytest.raises(ValueError, match="mine"), exact_convolutions(GPU):
        raise ValueError("mine")
    assert CONVOLUTIONS.fp32_precision == "tf32"
    assert BACKENDS.cudnn.allow_tf32


def test_where_a_service_asks_for_rounded_factors_in_all_products() -> None:
    """PyTorch's older switch cannot be read then."""
    BACKENDS.fp32_precision = "tf32"
    with exact_convolutions(GPU):
        assert CONVOLUTIONS.fp32_precision == "ieee"
    assert CONVOLUTIONS.fp32_precision == "tf32"

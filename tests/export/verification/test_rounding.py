"""What rounding does to a model is measured; what rounding cannot explain is refused."""

from __future__ import annotations

import json

import pytest
import torch
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import VerificationError

from ldp_export.verification.cases import ROUNDING_FILE, Case, ReferenceCases
from ldp_export.verification.rounding import FLOAT32_NOISE, measure_float32
from ldp_export.verification.tolerances import LOGITS

RECORDED = torch.tensor([[1.0, -3.0], [2.0, 0.5]])


def measured(error: float) -> dict[str, float]:
    """Of one recorded run, and a pruned one, which has no other way to be computed."""
    cases = (Case("whole", 1.0, 3.0), Case("pruned", 1.0, 3.0, pruned=True))
    tensors = {f"{case.name}.logits_{k}": RECORDED for case in cases for k in range(2)}
    return measure_float32(ReferenceCases(cases, tensors), lambda case: [RECORDED, RECORDED + error])


def test_rounding_is_the_largest_difference() -> None:
    assert measured(0.0) == {"logits": 0.0}
    assert measured(1e-5)["logits"] == pytest.approx(1e-5, rel=0.05)


@pytest.mark.parametrize("error", [2 * FLOAT32_NOISE, 1.0, float("nan"), float("inf")])
def test_more_than_rounding_is_refused(error: float) -> None:
    """Else a wrong reference model would widen what its engines may err by."""
    with pytest.raises(VerificationError, match="rounding explains"):
        measured(error)


def test_a_bundle_records_it(tiny_bundle: Bundle) -> None:
    """A model with logits near 2 rounds less than the fixed limit allows for, so that one holds."""
    rounding = json.loads((tiny_bundle.folder / "reference" / ROUNDING_FILE).read_text())
    assert 0 < rounding["logits"] < LOGITS

"""Small random models of both families: correct engines are verified, and an error of each kind is caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.study.planted_errors import COUNTS, KINDS, random_model


@pytest.mark.parametrize(("size", "seed"), [("infinity-1x96", 8), ("var-1x40", 5)])
def test_errors_are_caught_and_nothing_else(tmp_path: Path, size: str, seed: int) -> None:
    found = random_model(size, seed, [], tmp_path)
    assert found["correct"]["state"] == "verified", found["correct"]["failed"]
    assert found["correct"]["worst"][1] < 4, "correct engines are at least twice below their limits"
    counted = [error for error in found["planted"] if error["where"] is not None]
    assert len(counted) >= len(KINDS) - 1
    for error in counted:
        assert error["moved"] >= COUNTS
        assert error["caught_by"] is not None, error

"""The runtime stands alone: importing it, or the calibration package, loads no exporter."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("onnx", "onnxscript", "onnx_ir", "transformers", "ldp_export", "tensorrt", "matplotlib")


@pytest.mark.parametrize(
    ("module", "forbidden"), [("ldp_runtime", (*HEAVY, "ldp_calibration")), ("ldp_calibration", HEAVY)]
)
def test_light_imports(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert module in loaded
    assert not set(forbidden) & set(loaded)


def test_public_names() -> None:
    import ldp_runtime

    assert len(ldp_runtime.__all__) <= 13
    assert all(hasattr(ldp_runtime, name) for name in ldp_runtime.__all__)

"""Triton's model needs the runtime alone: nothing of the HTTP server, and nothing that builds."""

from __future__ import annotations

import subprocess
import sys

FORBIDDEN = {"fastapi", "starlette", "uvicorn", "prometheus_client", "opentelemetry", "ray", "onnx", "ldp_export"}


def test_answering_loads_no_server() -> None:
    modules = ("answering", "counts", "fields", "repository", "settings")
    imports = "; ".join(f"import ldp_serving.triton.{name}" for name in modules)
    code = f"import sys; sys.path[:0] = {sys.path!r}; {imports}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ldp_serving.triton.answering" in loaded
    assert not FORBIDDEN & set(loaded)

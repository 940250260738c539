"""Telemetry of the libraries that run engines: off, unless the user wants it."""

from __future__ import annotations

import os

#: Environment variable that switches the telemetry of ONNX Runtime off.
TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"


def without_telemetry() -> None:
    """Asks ONNX Runtime to send nothing and to keep nothing in the home folder, unless the user has set it.

    It is read when onnxruntime is first imported, so this comes before.
    """
    os.environ.setdefault(TELEMETRY_OFF, "1")

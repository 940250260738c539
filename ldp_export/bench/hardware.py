"""Names of the machine and the packages: numbers from different machines must not be compared."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import psutil
from ldp_runtime.engines.hardware import instructions, usable_cpus

from ldp_export import __version__
from ldp_export.versions import installed

_PACKAGES = ("torch", "onnxruntime", "onnxruntime-gpu", "transformers", "numpy")


def hardware() -> dict[str, Any]:
    """Processor and its instruction sets, cores, memory (GiB), operating system, GPU, and load (1-minute average).

    The instruction sets are there because a virtual machine may hide the processor's model. The load tells how busy the
    machine was.
    """
    return {
        "cpu": _cpu_name(),
        "instructions": instructions(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_usable": usable_cpus(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "gpu": _gpu_name(),
        "load_average": round(psutil.getloadavg()[0], 2),
    }


def software() -> dict[str, str]:
    """Versions of this toolkit and of what it compares."""
    return {"ldp-export": __version__} | installed(_PACKAGES)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None

"""The GPU and the processor of this machine: what they are, and what they can compute."""

from __future__ import annotations

import ctypes.util
import math
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ldp_runtime.errors import IncompatibleBundleError
from ldp_runtime.system.control_groups import cpu_quota
from ldp_runtime.system.installation import pytorch_build

if TYPE_CHECKING:
    import torch


def has_driver() -> bool:
    """True if an NVIDIA driver can be seen, from the system alone; PyTorch finds no GPU without one."""
    if platform.system() == "Windows":
        return ctypes.util.find_library("nvcuda") is not None
    return ctypes.util.find_library("cuda") is not None or any(map(Path.exists, map(Path, _DRIVERS)))


#: Paths that an NVIDIA driver makes on Linux, its containers and WSL.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia/version", "/usr/bin/nvidia-smi")


def usable_cpus() -> int:
    """Logical processors that this process may use, and gets time on: those of its affinity mask, within its quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if math.isinf(quota) else max(1, min(allowed, int(quota)))


def default_threads() -> int:
    """One thread per physical core that this process may use: two on one core only get in each other's way."""
    usable = usable_cpus()
    return min(usable, psutil.cpu_count(logical=False) or usable)


def local_capability(device: torch.device | str | None = None) -> str | None:
    """Compute capability of a CUDA device, as "8.9"; None where PyTorch finds none."""
    if not has_driver():
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def require_gpu(backend: str, device: torch.device | str) -> str:
    """Compute capability of `device`; its type is enough.

    Raises:
        IncompatibleBundleError: it is no CUDA device, or there is none; the message says what is missing.
    """
    if (device.partition(":")[0] if isinstance(device, str) else device.type) != "cuda":
        raise IncompatibleBundleError(
            f"{backend} engines run on a GPU; the device asked for is {str(device)!r}",
            hint="load with device='cuda' (--device cuda); for a CPU, build with --backend onnxruntime",
        )
    version, cuda = pytorch_build()
    if cuda is None:
        raise IncompatibleBundleError(
            f"{backend} engines need an NVIDIA GPU; this PyTorch ({version}) was built without CUDA",
            hint="on a machine with an NVIDIA GPU, install a CUDA build of PyTorch (https://pytorch.org); "
            "for this one, build with --backend onnxruntime",
        )
    capability = local_capability(device)
    if capability is None:
        raise IncompatibleBundleError(
            f"{backend} engines need an NVIDIA GPU; PyTorch finds no GPU or no driver on this machine",
            hint="install the NVIDIA driver, or run them on the machine that they were built for; "
            "for this one, build with --backend onnxruntime",
        )
    return capability


def check_capability(backend: str, here: str, built_for: Sequence[str]) -> None:
    """Raises IncompatibleBundleError when engines for `built_for` do not run on a GPU of capability `here`."""
    if here not in built_for:
        fix = f"--compute-capability {here}" if backend == "tensorrt-rtx" else "--backend tensorrt on this machine"
        raise IncompatibleBundleError(
            f"these engines were built for GPUs of compute capability {', '.join(built_for)}; this one has {here}",
            hint=f"build the bundle for it: ldp-export build {fix}",
        )


#: Instruction sets that decide how fast matrices are multiplied, as parts of Linux's names of them.
_DECISIVE = ("avx2", "avx512", "vnni", "bf16", "amx", "sve", "i8mm")


def cpu_features() -> frozenset[str]:
    """Names of this processor's instruction set extensions, as Linux gives them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = (line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(flags, []))


def instructions() -> str:
    """Instruction sets that decide how fast this processor multiplies, as "avx2, avx512, vnni"; empty if unknown."""
    features = cpu_features()
    return ", ".join(kind for kind in _DECISIVE if any(kind in feature for feature in features))


def multiplies_bfloat16() -> bool:
    """True if the processor multiplies bfloat16 itself, or nothing is known; other processors emulate it."""
    return not cpu_features() or "bf16" in instructions()

"""Checks that this machine has what PyTorch's compiler needs, before any work."""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

from ldp_runtime.errors import IncompatibleBundleError

if TYPE_CHECKING:
    import torch


def check_compiler(device: torch.device | str) -> None:
    """Checks that PyTorch can compile for the device at run time.

    On a CPU it needs a C++ compiler; on a GPU it needs Triton and, for Triton's launchers, a C compiler.

    Raises:
        IncompatibleBundleError: one of these is missing.
    """
    if (device if isinstance(device, str) else device.type) == "cpu":
        _check_cpp()
        return
    from torch.utils._triton import has_triton

    if not has_triton():
        raise IncompatibleBundleError(
            "PyTorch finds no Triton, with which it compiles for this GPU",
            hint="install triton (PyTorch's CUDA builds for Linux bring it along)",
        )
    if not any(map(shutil.which, filter(None, [os.environ.get("CC"), "gcc", "clang", "cc"]))):
        raise IncompatibleBundleError(
            "there is no C compiler, which Triton takes for its launchers",
            hint="install one (gcc or clang), or name one in CC",
        )


def check_compilers(on_gpu: bool) -> None:
    """Raises IncompatibleBundleError if graphs cannot be compiled ahead of time for a CPU, or for this GPU too."""
    _check_cpp()
    if on_gpu:
        check_compiler("cuda")


def _check_cpp() -> None:
    """Looks for the compiler that PyTorch takes, without PyTorch: `CXX`, or the system's own."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    if shutil.which(os.environ.get("CXX", usual)) is None:
        raise IncompatibleBundleError(
            "PyTorch finds no C++ compiler, which compiling takes",
            hint="install one (g++), or name one in CXX (clang++), or build with --backend onnxruntime",
        )

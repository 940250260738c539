"""Checks that this machine has what PyTorch's compiler needs, before any work."""

from __future__ import annotations

import os
import shutil

import torch

from ldp_runtime.errors import IncompatibleBundleError


def check_compiler(device: torch.device) -> None:
    """Checks that PyTorch can compile for the device at run time.

    On a CPU it needs a C++ compiler; on a GPU it needs Triton and, for Triton's launchers, a C compiler.

    Raises:
        IncompatibleBundleError: one of these is missing.
    """
    if device.type == "cpu":
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
        check_compiler(torch.device("cuda"))


def _check_cpp() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # of PyTorch's own types
        raise IncompatibleBundleError(
            "PyTorch finds no C++ compiler, which compiling takes",
            hint="install one (g++ or clang++, or name one in CXX), or build with --backend onnxruntime",
        ) from error

"""Diagnosis of this machine: its hardware and packages, what can be built and run on it, and the fix for the rest.

Nothing is guessed: each verdict is the check that the build or the runtime itself would make.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import psutil
from ldp_runtime.engines.hardware import instructions, local_capability, require_gpu, usable_cpus
from ldp_runtime.engines.onnxruntime import check_provider, import_onnxruntime
from ldp_runtime.engines.tensorrt.library import Flavour, load_library
from ldp_runtime.engines.torch_compiled.compiler import check_compiler, check_compilers
from ldp_runtime.errors import IncompatibleBundleError, LdpError
from ldp_runtime.pipeline.memory import available_memory
from ldp_runtime.system.installation import checkout, install, pytorch_build
from ldp_runtime.system.telemetry import TELEMETRY_OFF

from ldp_export.builders.tensorrt.builder import check_polygraphy
from ldp_export.versions import TOOLCHAIN, installed

#: Packages whose versions matter to somebody who helps.
_PACKAGES = (
    "ldp-export",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "polygraphy",
)


@dataclass(frozen=True)
class Fact:
    """Something that this machine has, or lacks.

    If it is missing, `value` says what was looked for and why it is not there.
    """

    name: str
    value: str
    found: bool = True


@dataclass(frozen=True)
class Verdict:
    """Result of one check: a backend can be built for, or run, on this machine; if not, the reason and the fix."""

    what: str
    works: bool
    reason: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings about this machine."""

    machine: tuple[Fact, ...]
    packages: dict[str, str]
    build: tuple[Verdict, ...]
    run: tuple[Verdict, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine() -> Diagnosis:
    """Looks at this machine; allocates nothing on a GPU and writes nothing."""
    machine = (_processor(), _gpu(), _driver(), _cuda(), _providers(), *map(_library, ("tensorrt", "tensorrt-rtx")))
    build = (
        _verdict("onnxruntime graphs", _check_graphs),
        _verdict("torch engines", _check_torch),
        _verdict("tensorrt engines", partial(_check_build, "tensorrt")),
        _verdict("tensorrt-rtx engines", partial(_check_build, "tensorrt-rtx")),
    )
    run = (
        _verdict("onnxruntime bundles on the CPU", partial(check_provider, "cpu")),
        _verdict("onnxruntime bundles on the GPU", partial(check_provider, "cuda")),
        _verdict("torch bundles that were built on this GPU", _check_torch_on_gpu),
        _verdict("torch bundles that were built for this CPU", pytorch_build),
        _verdict("tensorrt bundles", partial(_check_run, "tensorrt")),
        _verdict("tensorrt-rtx bundles", partial(_check_run, "tensorrt-rtx")),
    )
    return Diagnosis(machine, _packages(), build, run)


def _packages() -> dict[str, str]:
    """Versions of packages; that of a checkout says where it is, since no index knows it."""
    versions, folder = installed(_PACKAGES), checkout()
    if folder is not None:
        versions["ldp-export"] += f" (from {folder})"
    return versions


def _verdict(what: str, check: Callable[[], object]) -> Verdict:
    try:
        check()
    except LdpError as error:
        return Verdict(what, False, error.message, error.hint or "")
    except importlib.metadata.PackageNotFoundError as error:
        return Verdict(what, False, f"the Python package {error.name!r} is not installed", install("build"))
    return Verdict(what, True)


def _check_exporter() -> None:
    for package in TOOLCHAIN:
        importlib.metadata.version(package)


def _check_graphs() -> None:
    """Checks the needs of a build: the exporter, and the engines that verify what it writes."""
    _check_exporter()
    check_provider("cpu")


def _check_torch() -> None:
    """Checks the needs of a build: the exporter and a C++ compiler; for a GPU, Triton too."""
    _check_exporter()
    check_compilers(local_capability() is not None)


def _check_torch_on_gpu() -> None:
    """Checks the needs of loading: the GPU, and the compilers of fused blocks."""
    if local_capability() is None:
        raise IncompatibleBundleError(
            "device 'cuda' was asked for, but PyTorch finds no CUDA GPU here",
            hint="run them on the machine that they were built for, or build here without --backend torch",
        )
    check_compiler("cuda")


def _check_build(flavour: Flavour) -> None:
    """Checks the needs of a build: exporter, library, Polygraphy and, for TensorRT, the GPU that runs the engines."""
    _check_exporter()
    load_library(flavour)
    check_polygraphy()
    if flavour == "tensorrt":
        require_gpu("tensorrt", "cuda")


def _check_run(flavour: Flavour) -> None:
    capability, library = require_gpu(flavour, "cuda"), load_library(flavour)
    if library.targets and capability not in library.targets:
        raise IncompatibleBundleError(
            f"{library.title} serves compute capabilities {', '.join(library.targets)}; this GPU has {capability}",
            hint="build with --backend tensorrt on this machine",
        )


def _processor() -> Fact:
    memory = psutil.virtual_memory()
    return Fact(
        "processor",
        f"{platform.machine()} ({instructions() or 'instruction sets unknown'}), {psutil.cpu_count()} threads "
        f"({usable_cpus()} for this process), {memory.total / 2**30:.0f} GiB of memory "
        f"({available_memory('cpu') / 2**30:.0f} GiB free for it)",
    )


def _gpu() -> Fact:
    capability = local_capability()
    if capability is None:
        return Fact("GPU", "PyTorch finds none", found=False)
    import torch

    properties = torch.cuda.get_device_properties(0)
    return Fact("GPU", f"{properties.name}, compute capability {capability}, {properties.total_memory / 2**30:.0f} GiB")


def _driver() -> Fact:
    """Newest CUDA version that the driver serves, asked of the driver itself."""
    try:
        library = ctypes.CDLL("libcuda.so.1" if platform.system() == "Linux" else "nvcuda.dll")
    except OSError as error:
        return Fact("NVIDIA driver", str(error), found=False)
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return Fact("NVIDIA driver", "is there, but does not answer", found=False)
    return Fact("NVIDIA driver", f"serves CUDA up to {version.value // 1000}.{version.value % 1000 // 10}")


def _cuda() -> Fact:
    version, cuda = pytorch_build()
    if cuda is None:
        return Fact("PyTorch", f"{version}, built without CUDA", found=False)
    return Fact("PyTorch", f"{version}, built for CUDA {cuda}")


def _providers() -> Fact:
    try:
        onnxruntime = import_onnxruntime()
    except LdpError as error:
        return Fact("ONNX Runtime", error.message, found=False)
    telemetry = "off" if os.environ.get(TELEMETRY_OFF) not in ("", "0") else "on, as the environment asks"
    providers = ", ".join(onnxruntime.get_available_providers())
    return Fact("ONNX Runtime", f"{onnxruntime.__version__}: {providers}; telemetry {telemetry}")


def _library(flavour: Flavour) -> Fact:
    name = "TensorRT" if flavour == "tensorrt" else "TensorRT-RTX"
    try:
        library = load_library(flavour)
    except LdpError as error:
        return Fact(name, error.message, found=False)
    targets = f", builds for compute capabilities {', '.join(library.targets)}" if library.targets else ""
    return Fact(name, f"{library.version}{targets}")

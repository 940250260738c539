"""Target of a compiled PyTorch package: this version of PyTorch, and this kind of processor or GPU."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

from ldp_runtime.bundle.manifest import TargetEntry
from ldp_runtime.engines.hardware import cpu_features
from ldp_runtime.errors import IncompatibleBundleError

if TYPE_CHECKING:
    import torch

#: Instruction set extensions that a C++ compiler may emit when told to use all of this processor.
_EXTENSIONS = ("sse4", "avx", "amx", "fma", "f16c", "bmi", "sve", "asimd", "i8mm", "bf16")


def local_target(device: torch.device) -> TargetEntry:
    """Target of a package that is compiled on this machine for `device`.

    Raises:
        IncompatibleBundleError: there is no such device here.
    """
    import torch

    return TargetEntry(
        library=torch.__version__,
        compute_capabilities=(_capability(device),) if device.type == "cuda" else (),
        system=f"{platform.system()} {platform.machine()}",
        instructions=_instructions() if device.type == "cpu" else (),
    )


def check_target(target: TargetEntry | None, device: torch.device) -> None:
    """Raises IncompatibleBundleError, naming both sides, when a package for `target` does not run on `device` here."""
    if target is None:
        raise IncompatibleBundleError(
            "the manifest does not say what these engines were compiled for",
            hint="build the bundle again: ldp-export build --backend torch",
        )
    built_for = "cuda" if target.compute_capabilities else "cpu"
    if device.type != built_for:
        raise IncompatibleBundleError(
            f"these engines were compiled for {built_for!r}; the device asked for is {str(device)!r}",
            hint=f"load with device={built_for!r}, or build again with --backend torch where there is such a device",
        )
    here = local_target(device)
    problems = [
        f"{what} {theirs}, here {ours}"
        for what, theirs, ours in (
            ("PyTorch", target.library, here.library),
            ("system", target.system, here.system),
            ("compute capability", target.compute_capabilities, here.compute_capabilities),
        )
        if theirs != ours
    ]
    missing = sorted(set(target.instructions) - set(here.instructions))
    if missing:
        problems.append(f"instructions {', '.join(missing)}, which this processor lacks")
    if problems:
        raise IncompatibleBundleError(
            "these engines were compiled for another machine: " + "; ".join(problems),
            hint="build the bundle on this machine, or with --backend onnxruntime, whose engines move freely",
        )


def _capability(device: torch.device) -> str:
    import torch

    if not torch.cuda.is_available():
        raise IncompatibleBundleError(
            f"device {str(device)!r} was asked for, but PyTorch finds no CUDA GPU here",
            hint="load with device='cpu' a bundle that was built for one; ldp-export doctor says what the GPU lacks",
        )
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def _instructions() -> tuple[str, ...]:
    """Vector extensions of this processor; if the system lists none, PyTorch's one word for them."""
    import torch

    found = {feature for feature in cpu_features() if feature.startswith(_EXTENSIONS)}
    return tuple(sorted(found)) or (torch.backends.cpu.get_cpu_capability().lower(),)

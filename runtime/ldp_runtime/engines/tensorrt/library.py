"""All differences between TensorRT and TensorRT-RTX, and between their versions.

Both are strongly typed here: precision lives in the graph, so no precision flag is ever set. The differences:

    | | TensorRT 11 | TensorRT-RTX 1 |
    |---|---|---|
    | engines run on | the kind of GPU they were built on | the compute capabilities named at the build |
    | built without a GPU | no | yes |
    | timing cache | yes | accepted and ignored |
    | CUDA graphs | captured by the caller | `IRuntimeConfig.cuda_graph_strategy` |
    | kernels compiled at run time, kept in a runtime cache | no | yes |
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ldp_runtime.errors import ConfigError, IncompatibleBundleError
from ldp_runtime.system.installation import install

Flavour = Literal["tensorrt", "tensorrt-rtx"]


_MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


_OLDEST: dict[Flavour, tuple[int, ...]] = {"tensorrt": (11,), "tensorrt-rtx": (1, 5)}


_EXTRAS: dict[Flavour, str] = {
    "tensorrt": "tensorrt-cu13",  # or tensorrt-cu12, as the driver needs
    "tensorrt-rtx": "tensorrt-rtx",
}


_OR_CU12: dict[Flavour, str] = {"tensorrt": "; for an older driver [tensorrt-cu12]", "tensorrt-rtx": ""}


#: Alignment of every address that is bound [bytes].
ALIGNMENT = 256


@dataclass(frozen=True)
class Message:
    """A line of the library's log; `severity` is "error", "warning" or "info"."""

    severity: str
    text: str


@dataclass(frozen=True)
class Library:
    """One imported flavour.

    Attributes:
        module: `tensorrt` or `tensorrt_rtx`; both have the same names, except for the differences that the properties
            below answer.
    """

    flavour: Flavour
    module: Any

    @property
    def version(self) -> str:
        return self.module.__version__

    @property
    def title(self) -> str:
        return f"{'TensorRT' if self.flavour == 'tensorrt' else 'TensorRT-RTX'} {self.version}"

    @property
    def cross_builds(self) -> bool:
        """True if engines are built for named compute capabilities, on any machine."""
        return hasattr(self.module, "ComputeCapability")

    @property
    def has_timing_cache(self) -> bool:
        return self.flavour == "tensorrt"

    @property
    def captures_graphs(self) -> bool:
        """True if the library captures CUDA graphs by itself."""
        return hasattr(self.module, "CudaGraphStrategy")

    @property
    def targets(self) -> tuple[str, ...]:
        """Compute capabilities that engines can be built for, as "8.9"; empty if only the local GPU is possible."""
        if not self.cross_builds:
            return ()
        names = (name for name in self.module.ComputeCapability.__members__ if name.startswith("SM"))
        return tuple(sorted((f"{name[2:-1]}.{name[-1]}" for name in names), key=capability))

    @contextmanager
    def listening(self) -> Generator[list[Message]]:
        """Collects everything the library logs meanwhile, on any thread. One listener at a time: there is one log."""
        log = _log(self.flavour)
        with log.lock:
            heard: list[Message] = []
            log.heard = heard
            try:
                yield heard
            finally:
                log.heard = None

    def logger(self) -> Any:
        """The only logger of the process: the library keeps the first one that it is given."""
        return _log(self.flavour).logger

    def new_network(self) -> tuple[Any, Any]:
        """Creates a builder and an empty, strongly typed network."""
        trt = self.module
        builder = trt.Builder(self.logger())
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return builder, builder.create_network(flags)

    def aim(self, config: Any, capabilities: Sequence[str]) -> None:
        """Sets the GPUs that the engine is for. TensorRT knows only the one that it is built on."""
        if not self.cross_builds:
            return
        config.num_compute_capabilities = len(capabilities)
        for index, name in enumerate(capabilities):
            config.set_compute_capability(getattr(self.module.ComputeCapability, f"SM{name.replace('.', '')}"), index)

    def exact(self, config: Any) -> None:
        """Keeps float32 products in float32: no TensorFloat-32."""
        config.clear_flag(self.module.BuilderFlag.TF32)

    def capturable(self, config: Any) -> None:
        """Restricts engines to the caller's memory, which capturing a CUDA graph needs."""
        flag = getattr(self.module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
        if flag is not None:
            config.set_flag(flag)

    def new_runtime(self) -> Any:
        return self.module.Runtime(self.logger())

    def refusal(self, runtime: Any, header: bytes) -> str | None:
        """Reason why an engine file cannot run here, as far as its first bytes tell; None if it may run."""
        if not hasattr(runtime, "get_engine_validity"):
            return None
        validity, reasons = runtime.get_engine_validity(header)
        if validity != self.module.EngineValidity.INVALID:
            return None
        diagnostics = self.module.EngineInvalidityDiagnostics.__members__.items()
        named = [name.lower().replace("_", " ") for name, bit in diagnostics if int(reasons) & int(bit)]
        return ", ".join(named) or self.recent_errors()

    def header_size(self, runtime: Any) -> int:
        """Number of bytes that `refusal` reads."""
        return getattr(runtime, "engine_header_size", 0)

    def new_context_config(self, engine: Any, kernels: Path | None) -> tuple[Any, Any]:
        """Configuration of an engine's contexts, and its cache of kernels compiled at run time (None if it has none).

        Args:
            kernels: file of such a cache from an earlier run; one of another GPU, driver or version is ignored.
        """
        trt = self.module
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.captures_graphs:
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if not hasattr(config, "create_runtime_cache"):
            return config, None
        cache = config.create_runtime_cache()
        if kernels is not None and kernels.is_file():
            cache.deserialize(kernels.read_bytes())
        config.set_runtime_cache(cache)
        return config, cache

    def recent_errors(self) -> str:
        """The last errors that the library logged, in words."""
        return "; ".join(_log(self.flavour).errors) or "it gave no reason"


class _Log:
    """Receives the library's log and hands it to the listener, if there is one."""

    def __init__(self, trt: Any) -> None:
        self.heard: list[Message] | None = None
        self.errors: deque[str] = deque(maxlen=3)
        self.lock = threading.RLock()
        severity = trt.ILogger
        names = {severity.INTERNAL_ERROR: "error", severity.ERROR: "error", severity.WARNING: "warning"}

        def hear(level: Any, text: str) -> None:
            if names.get(level) == "error":
                self.errors.append(text)
            if self.heard is not None and level != severity.VERBOSE:
                self.heard.append(Message(names.get(level, "info"), text))

        self.logger = _logger_class(trt)(hear)


def _logger_class(trt: Any) -> type:
    class Logger(trt.ILogger):
        def __init__(self, hear: Callable[[Any, str], None]) -> None:
            trt.ILogger.__init__(self)
            self.hear = hear

        def log(self, severity: Any, msg: str) -> None:
            self.hear(severity, msg)

    return Logger


@cache
def _log(flavour: Flavour) -> _Log:
    return _Log(load_library(flavour).module)


def is_installed(flavour: Flavour) -> bool:
    """True if the package is installed; it may still fail to load."""
    return importlib.util.find_spec(_MODULES[flavour]) is not None


def load_library(flavour: Flavour) -> Library:
    """Imports one flavour.

    Raises:
        IncompatibleBundleError: it is not installed, too old, or its shared libraries cannot be loaded here.
    """
    if not is_installed(flavour):
        raise IncompatibleBundleError(
            f"{flavour} engines need the Python package {_MODULES[flavour]!r}, which is not installed",
            hint=install(_EXTRAS[flavour]) + _OR_CU12[flavour],
        )
    try:
        module = importlib.import_module(_MODULES[flavour])
    except (ImportError, OSError, RuntimeError) as error:
        raise IncompatibleBundleError(
            f"the Python package {_MODULES[flavour]!r} is installed but cannot be loaded here: {error}",
            hint="TensorRT needs an NVIDIA driver (libcuda.so.1); `ldp-export doctor` says what is missing",
        ) from error
    library = Library(flavour, module)
    if version_tuple(library.version)[: len(_OLDEST[flavour])] < _OLDEST[flavour]:
        oldest = ".".join(map(str, _OLDEST[flavour]))
        raise IncompatibleBundleError(
            f"{library.title} is too old; {flavour} {oldest} or newer is needed",
            hint=install(_EXTRAS[flavour]).replace("install", "install --upgrade") + _OR_CU12[flavour],
        )
    return library


def version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def capability(text: str) -> tuple[int, int]:
    """Compute capability "8.9" as (8, 9).

    Raises:
        ConfigError: the text is no compute capability.
    """
    major, dot, minor = text.strip().partition(".")
    if not (dot and major.isdigit() and minor.isdigit() and len(minor) == 1):
        raise ConfigError(f"{text!r} is no compute capability", hint="write it as in 8.9 (a GeForce RTX 40, an L4)")
    return int(major), int(minor)

"""TensorRT and TensorRT-RTX engines.

The engines of one bundle run one after the other, so they share a session. It has a stream of its own, one piece of
memory for activations, and one for outputs that nobody wants. Tensors are bound by pointer: the keys and values of a
call land in the cache without a copy.

Early scales are limited by launches, not by arithmetic, and their shapes come back with every image. Their calls are
captured as CUDA graphs (by TensorRT-RTX itself, or here for TensorRT).
"""

from __future__ import annotations

import contextlib
import logging
import mmap
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from ldp_runtime.bundle.manifest import GraphEntry, Manifest, TargetEntry
from ldp_runtime.bundle.optimization_profiles import choose_profile
from ldp_runtime.engines.graph_cache import GraphCache, GraphCounters, full_scales
from ldp_runtime.engines.hardware import check_capability, require_gpu
from ldp_runtime.engines.tensorrt.addresses import Addresses
from ldp_runtime.engines.tensorrt.bindings import Binding, input_bindings, output_bindings
from ldp_runtime.engines.tensorrt.library import Flavour, Library, load_library
from ldp_runtime.engines.tensors import axis_sizes
from ldp_runtime.errors import CapacityError, ClosedError, IncompatibleBundleError, IntegrityError, LdpError
from ldp_runtime.system.disk import write_durably

logger = logging.getLogger(__name__)


#: Bytes that captured CUDA graphs may hold on the device.
GRAPH_BYTES = 256 * 2**20


#: Calls of at most this many tokens are limited by launches; only they are captured.
_LAUNCH_BOUND = 128


def check_target(backend: Flavour, target: TargetEntry | None, capability: str, version: str) -> None:
    """Refuses engines that were built for another GPU, or by another version of the library, than this machine has.

    Raises:
        IncompatibleBundleError: the engines do not fit; the message names both sides. No engine file is opened.
    """
    if target is None:
        raise IncompatibleBundleError(
            f"this bundle does not say which GPUs its {backend} engines are for", hint="rebuild the bundle"
        )
    check_capability(backend, capability, target.compute_capabilities)
    if version != target.library:
        raise IncompatibleBundleError(
            f"these engines were built by {backend} {target.library}; {version} is installed",
            hint=f"install version {target.library}, or rebuild the bundle with this one",
        )


def check_machine(manifest: Manifest, device: torch.device) -> Library:
    """Library that runs a bundle's engines on this machine.

    Raises:
        IncompatibleBundleError: no GPU, another GPU, no library or another version of it; the message says which.
    """
    backend = manifest.backend
    assert backend in ("tensorrt", "tensorrt-rtx")
    capability = require_gpu(backend, device)
    library = load_library(backend)
    check_target(backend, manifest.target, capability, library.version)
    return library


def kernels_folder(manifest: Manifest) -> Path:
    """Folder that keeps kernels compiled at run time for later runs: they belong to the machine, not to the bundle."""
    return platformdirs.user_cache_path("ldp-export") / "kernels" / manifest.version


class TensorRtSession:
    """Resources shared by the engines of one bundle, which run one at a time (the pipeline's calls queue).

    Attributes:
        graphs: captured CUDA graphs; `counters` says how often they were replayed.
        kernels: folder for kernels that TensorRT-RTX compiles at run time, or None to keep none.

    Raises:
        IncompatibleBundleError: see `check_machine`.
    """

    def __init__(
        self, manifest: Manifest, device: torch.device, graph_bytes: int = GRAPH_BYTES, kernels: Path | None = None
    ) -> None:
        self.library = check_machine(manifest, device)
        self.device, self.kernels = device, kernels
        self.stream = torch.cuda.Stream(device)
        self.runtime = self.library.new_runtime()
        self.graphs: GraphCache[_CapturedCall] = GraphCache(0 if self.library.captures_graphs else graph_bytes)
        self.full_scales = full_scales(manifest.schedules())
        self._memory: dict[str, torch.Tensor] = {}

    def memory(self, purpose: str, size: int) -> torch.Tensor:
        """Memory of at least `size` bytes [uint8] that is kept for one purpose; growing it drops all captured graphs.

        Raises:
            CapacityError: the device has no room.
        """
        held = self._memory.get(purpose)
        if held is None or held.numel() < size:
            self.stream.synchronize()
            self.graphs.clear()  # they replay into the old memory
            self._memory.pop(purpose, None)
            del held
            try:
                held = torch.empty(max(1, size), dtype=torch.uint8, device=self.device)
            except torch.OutOfMemoryError as error:
                raise CapacityError(
                    f"{size / 2**20:.0f} MiB of GPU memory for {purpose} could not be allocated",
                    hint="load with a lower max_batch, or build with a lower --max-batch",
                ) from error
            self._memory[purpose] = held
        return held

    @property
    def counters(self) -> GraphCounters:
        return self.graphs.counters


@dataclass(frozen=True)
class _CapturedCall:
    """A graph and the context of its capture, which must live as long as the graph and serve no other shapes."""

    graph: torch.cuda.CUDAGraph
    context: Any


class TensorRtEngine:
    """Engine of one graph.

    Args:
        size: bytes of the engine file, from the manifest.

    Raises:
        IncompatibleBundleError: the library refuses the engine on this machine.
        IntegrityError: the file is missing, has another size, or holds another engine than the manifest says.
    """

    def __init__(self, name: str, path: Path, graph: GraphEntry, session: TensorRtSession, size: int) -> None:
        self.name, self.device, self.graph = name, session.device, graph
        self._session = session
        check_size(path, size)
        self._engine: Any = _deserialize(name, path, session)
        self._check_tensors(path)
        self._check_aliases(path)
        cached = None if session.kernels is None else session.kernels / f"{name}.kernels"
        self._config, self._kernels = session.library.new_context_config(self._engine, cached)
        self._contexts = [self._new_context(index) for index in range(len(graph.profiles))]

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        """Runs one call; see `Engine.run`. Before and after, the two streams wait for each other on the device.

        Raises:
            ConfigError, CapacityError: the engine was not built for such a call; nothing was sent to the device.
        """
        if self._engine is None:
            raise ClosedError(f"the engine {self.name!r} is closed", hint="load the bundle again: Pipeline.load(...)")
        sizes = axis_sizes(self.graph.inputs, inputs, self.name)
        profile = choose_profile(self.graph.profiles, sizes, self.name)
        bound = input_bindings(self.graph.inputs, inputs) + output_bindings(
            self.graph.outputs, outputs, sizes, self.name
        )
        session, caller = self._session, torch.cuda.current_stream(self.device)
        session.stream.wait_stream(caller)
        with torch.cuda.stream(session.stream):
            places = Addresses(bound, inputs, outputs, self._is_captured(sizes), session.memory)
            self._execute(profile, bound, places)
            places.copy_back()
        caller.wait_stream(session.stream)

    def close(self) -> None:
        """Releases the engine; kernels that TensorRT-RTX compiled meanwhile are kept for the next run."""
        if self._engine is None:
            return
        self._session.stream.synchronize()
        self._session.graphs.clear()
        if self._kernels is not None and self._session.kernels is not None:
            keep_kernels(self._session.kernels / f"{self.name}.kernels", bytes(self._kernels.serialize()))
        self._contexts.clear()
        self._config = self._kernels = self._engine = None

    def _new_context(self, profile: int) -> Any:
        """Creates a context on one optimization profile; its activations will lie in the session's memory."""
        context = self._engine.create_execution_context(runtime_config=self._config)
        stream = self._session.stream
        if context is None or not context.set_optimization_profile_async(profile, stream.cuda_stream):
            raise CapacityError(
                f"no execution context for {self.name!r}, profile {profile}: {self._session.library.recent_errors()}",
                hint="the GPU may be out of memory",
            )
        stream.synchronize()
        return context

    def _is_captured(self, sizes: Mapping[str, int]) -> bool:
        """True if calls of these sizes are captured and replayed: those of small scales without pruning."""
        if self._session.graphs.limit == 0 or "tokens" not in sizes or sizes["tokens"] > _LAUNCH_BOUND:
            return False
        full = self._session.full_scales
        if "past" in sizes:
            return (sizes["past"], sizes["tokens"]) in full
        return sizes["tokens"] in {tokens for _, tokens in full}  # a static cache: the past has no size

    def _execute(self, profile: int, bound: list[Binding], places: Addresses) -> None:
        graphs = self._session.graphs
        call: Hashable = (self.name, profile, tuple((b.shape, places.address(b)) for b in bound))
        captured = graphs.find(call) if places.captured else None
        graphs.counters.plain += not places.captured
        if captured is not None:
            captured.graph.replay()
            return
        self._enqueue(self._contexts[profile], profile, bound, places)
        if places.captured and graphs.is_worth_capturing(call):
            captured, size = self._capture(profile, bound, places)
            graphs.keep(call, captured, size)

    def _enqueue(self, context: Any, profile: int, bound: list[Binding], places: Addresses) -> None:
        size = self._engine.get_device_memory_size_for_profile_v2(profile)
        context.set_device_memory(self._session.memory("activations", size).data_ptr(), size)
        inputs = {entry.name for entry in self.graph.inputs}
        fits = all(context.set_input_shape(b.name, b.shape) for b in bound if b.name in inputs)
        fits = fits and all(context.set_tensor_address(b.name, places.address(b)) for b in bound)
        if not fits or not context.execute_async_v3(self._session.stream.cuda_stream):
            raise LdpError(
                f"the graph {self.name!r} failed: {self._session.library.recent_errors()}",
                hint="ldp-export verify BUNDLE --device cuda says if the engines are sound here; if so, report it",
            )

    def _capture(self, profile: int, bound: list[Binding], places: Addresses) -> tuple[_CapturedCall, int]:
        """Captures the call as a CUDA graph; also returns the bytes of device memory that it took."""
        stream = self._session.stream
        stream.synchronize()
        before = torch.cuda.mem_get_info(self.device)[0]
        context = self._new_context(profile)  # a graph's context must keep its shapes
        self._enqueue(context, profile, bound, places)  # work that is put off until the first call is not captured
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            if not context.execute_async_v3(stream.cuda_stream):
                raise LdpError(
                    f"{self.name!r} could not be captured: {self._session.library.recent_errors()}",
                    hint="ldp-export verify BUNDLE --device cuda says if the engines are sound here; if so, report it",
                )
        return _CapturedCall(graph, context), max(2**20, before - torch.cuda.mem_get_info(self.device)[0])

    def _check_aliases(self, path: Path) -> None:
        """Checks that the engine writes caches where the runtime will bind them: in place, or nowhere."""
        wrong = check_aliases([entry.name for entry in self.graph.outputs], self._engine.get_aliased_input_tensor)
        if wrong is not None:
            raise IntegrityError(
                f"{path} holds another engine than the manifest says: {wrong}", hint="rebuild the bundle"
            )

    def _check_tensors(self, path: Path) -> None:
        """Checks that the engine's own names, types and optimization profiles are those of the manifest."""
        engine, trt = self._engine, self._session.library.module
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        types = {name: _type_name(trt, engine.get_tensor_dtype(name)) for name in names}
        expected = {entry.name: entry.dtype for entry in (*self.graph.inputs, *self.graph.outputs)}
        if types != expected or engine.num_optimization_profiles != len(self.graph.profiles):
            differ = sorted(name for name in {*types, *expected} if types.get(name) != expected.get(name))
            raise IntegrityError(
                f"{path} holds another engine than the manifest says: {differ[:5]} differ, "
                f"{engine.num_optimization_profiles} profiles instead of {len(self.graph.profiles)}",
                hint="rebuild the bundle",
            )


def check_aliases(outputs: Iterable[str], source: Callable[[str], str | None]) -> str | None:
    """Describes a cache that an engine does not write where it reads it; None when all is well.

    Args:
        outputs: names of a graph's outputs.
        source: maps an output's name to that of the input whose memory it shares, or to None.
    """
    for name in outputs:
        cache = "cache_" + name.removeprefix("present_") if name.startswith("present_") else None
        if source(name) != cache:
            return f"{name} shares the memory of {source(name)} instead of {cache}"
    return None


def keep_kernels(path: Path, content: bytes) -> None:
    """Writes kernels for the next run. A failure is only a warning, since the kernels are then compiled again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, content)
    except OSError as error:
        logger.warning("kernels compiled at run time are not kept in %s: %s", path, error)


def check_size(path: Path, size: int) -> None:
    """Raises IntegrityError when an engine file is missing, or not as long as it was built."""
    actual = path.stat().st_size if path.is_file() else None
    if actual != size:
        what = "is missing" if actual is None else f"has {actual} bytes instead of {size}"
        raise IntegrityError(f"the engine {path} {what}", hint="copy the bundle again, or rebuild it")


def _deserialize(name: str, path: Path, session: TensorRtSession) -> Any:
    """Loads the engine of a file, which is mapped into memory rather than read."""
    library = session.library
    with path.open("rb") as file, contextlib.closing(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)) as content:
        refusal = library.refusal(session.runtime, content[: library.header_size(session.runtime)])
        if refusal is not None:
            raise IncompatibleBundleError(
                f"{library.title} cannot run the engine {name!r} here: {refusal}", hint="rebuild the bundle here"
            )
        engine = session.runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise IncompatibleBundleError(
            f"{library.title} cannot load the engine {name!r}: {library.recent_errors()}",
            hint="`ldp-export doctor` says what is missing here",
        )
    return engine


def _type_name(trt: Any, kind: Any) -> str:
    names = {trt.float32: "float32", trt.float16: "float16", trt.bfloat16: "bfloat16", trt.int64: "int64"}
    return names.get(kind, "bool" if kind == trt.bool else str(kind))

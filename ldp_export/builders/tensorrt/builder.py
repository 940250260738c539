"""Builder for TensorRT and TensorRT-RTX.

Engines are strongly typed, have optimization profiles from the scale schedules, and are streamed to disk.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_runtime.bundle.manifest import Backend, QuantizedScales, TargetEntry
from ldp_runtime.bundle.optimization_profiles import OptimizationProfile
from ldp_runtime.engines.tensorrt.library import Flavour, Library, Message, load_library
from ldp_runtime.errors import EngineBuildError, IncompatibleBundleError
from ldp_runtime.schedule import ScaleSchedule
from ldp_runtime.system.disk import scratch_path, write_durably
from ldp_runtime.system.installation import install
from ldp_runtime.token_layout import LatentLayout

from ldp_export.builders.base import ExportedGraph, has_8_bit_weights, insert_8_bits
from ldp_export.builders.cancellable import BuildProgress, progress_monitor, run_cancellable
from ldp_export.builders.tensorrt.network import Network, allow_plain_attention, parse_network, refuse_unused
from ldp_export.builders.tensorrt.optimization_profiles import graph_profiles
from ldp_export.graphs.signature import QUANTIZED, Axis, GraphSignature

if TYPE_CHECKING:
    from ldp_export.quantization.formats import Format

logger = logging.getLogger(__name__)


ENGINE_FILE, LAYERS_FILE = "engine.plan", "layers.json"


@dataclass(frozen=True)
class TensorRtBuilder:
    """Builds engines with one of the two libraries.

    Attributes:
        flavour: the library, TensorRT or TensorRT-RTX.
        capabilities: compute capabilities of the GPUs to build for, as ("8.9",); for TensorRT, that of this machine's.
        schedules: scale schedules of every shape that the model draws, the usual one first.
        layout: layout of the tokens on the latent.
        buckets: number of profiles of a graph that runs once per scale.
        max_rows: largest number of rows in one call.
        text_tokens: longest prompt, in tokens.
        local: True if this machine's GPU is among the targets.
        timing_cache: file in which TensorRT keeps measured kernels between builds, or None.
        quantized: last scales at which the blocks' matrix products are in 8 bits; None for none.
        weights_in_8_bits: stores the blocks' weights in 8-bit integers, for products in the graphs' precision.
    """

    flavour: Flavour
    capabilities: tuple[str, ...]
    schedules: tuple[ScaleSchedule, ...]
    layout: LatentLayout
    buckets: int
    max_rows: int
    text_tokens: int
    local: bool = False
    timing_cache: Path | None = None
    quantized: QuantizedScales | None = None
    weights_in_8_bits: bool = False

    @property
    def backend(self) -> Backend:
        return self.flavour

    @property
    def verified_on(self) -> str | None:
        return "cuda" if self.local else None

    @property
    def library(self) -> Library:
        return load_library(self.flavour)

    def engine_file(self, signature: GraphSignature) -> str:
        return ENGINE_FILE

    def target(self) -> TargetEntry | None:
        return TargetEntry(library=self.library.version, compute_capabilities=self.capabilities)

    def profiles(self, signature: GraphSignature) -> tuple[OptimizationProfile, ...]:
        return graph_profiles(signature, self.schedules, self.layout, self.buckets, self.max_rows, self.text_tokens)

    def quantizes(self, name: str) -> bool:
        return name.startswith(QUANTIZED)

    def _is_in_8_bits(self, name: str) -> bool:
        return self.quantizes(name) or has_8_bit_weights(self, name)

    def form(self) -> Format:
        from ldp_export.quantization.formats import FORMATS

        return FORMATS["int8" if self.quantized is None else self.quantized.precision]

    def key(self, signature: GraphSignature) -> Mapping[str, Any]:
        quantized = {"form": repr(self.form())} if self._is_in_8_bits(signature.name) else {}
        return quantized | {
            "library": self.library.title,
            "compute_capabilities": list(self.capabilities),
            "profiles": [repr(profile) for profile in self.profiles(signature)],
        }

    def build(self, graph: ExportedGraph, folder: Path, say: Callable[[str], None]) -> None:
        """Writes `engine.plan`, and `layers.json`: the number of layers of each type that it was built from.

        Raises:
            EngineBuildError: as `parse_network`; or the library found no kernels, or ran out of memory.
            KeyboardInterrupt: the user stopped the build; the library has stopped.
        """
        library, progress = self.library, BuildProgress()

        def work() -> None:
            with library.listening() as heard, self._parsed_folder(graph, folder, say) as source:
                network = parse_network(library, graph.signature, source, heard)
                allow_plain_attention(library, network.network, graph.signature)
                config = self._config(library, network, graph.signature, progress)
                _write_engine(library, network, config, graph.signature, folder / ENGINE_FILE, progress, heard)
                _save_timing_cache(library, config, self.timing_cache)
            (folder / LAYERS_FILE).write_text(json.dumps(dict(sorted(network.layers.items())), indent=1))

        run_cancellable(work, progress, say)

    @contextmanager
    def _parsed_folder(self, graph: ExportedGraph, folder: Path, say: Callable[[str], None]) -> Generator[Path]:
        """Folder of the graph that the engine is built from: a temporary copy if some of it is to be in 8 bits."""
        if not self._is_in_8_bits(graph.signature.name):
            yield graph.folder
            return
        copy = scratch_path(folder.parent)
        try:
            insert_8_bits(graph, copy, self.form(), say)
            yield copy
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def _config(self, library: Library, network: Network, signature: GraphSignature, progress: BuildProgress) -> Any:
        """Builder configuration: profiles, targets, exact arithmetic, progress."""
        config = network.builder.create_builder_config()
        for profile in self.profiles(signature):
            ranges = polygraphy_profile(library, signature, profile)
            config.add_optimization_profile(ranges.to_trt(network.builder, network.network))
        library.aim(config, self.capabilities)
        library.exact(config)
        library.capturable(config)
        config.progress_monitor = progress_monitor(library.module, progress)
        if library.has_timing_cache:
            stored = self.timing_cache.read_bytes() if self.timing_cache and self.timing_cache.is_file() else b""
            if not config.set_timing_cache(config.create_timing_cache(stored), False):  # from another version or GPU
                config.set_timing_cache(config.create_timing_cache(b""), False)
        return config


def polygraphy_profile(library: Library, signature: GraphSignature, profile: OptimizationProfile) -> Any:
    """Optimization profile as shapes of each input: a `polygraphy.backend.trt.Profile`, whose repr is valid code."""
    Profile = polygraphy_backend(library).Profile
    ranges = Profile()
    for spec in signature.inputs:
        shapes = [
            tuple(_side(profile, dim, which) if isinstance(dim, Axis) else dim for dim in spec.shape)
            for which in ("smallest", "typical", "largest")
        ]
        ranges.add(spec.name, min=shapes[0], opt=shapes[1], max=shapes[2])
    return ranges


def _side(profile: OptimizationProfile, axis: Axis, which: str) -> int:
    return getattr(profile.axes[axis.value], which)


def check_polygraphy() -> None:
    """Raises IncompatibleBundleError if Polygraphy, which defines the optimization profiles, is not installed."""
    if importlib.util.find_spec("polygraphy") is None:
        raise IncompatibleBundleError(
            "building TensorRT engines needs the Python package 'polygraphy', which is not installed",
            hint=f"{install('tensorrt-rtx')}; or [tensorrt-cu12], or [tensorrt-cu13]",
        )


def polygraphy_backend(library: Library) -> Any:
    """Polygraphy's TensorRT backend for this flavour. Polygraphy binds itself to one flavour when it is imported.

    Raises:
        EngineBuildError: this process has imported it for the other flavour.
    """
    from polygraphy import config

    config.USE_TENSORRT_RTX = library.flavour == "tensorrt-rtx"
    from polygraphy.backend import trt
    from polygraphy.backend.trt import profile
    from polygraphy.logger import G_LOGGER

    G_LOGGER.module_severity = G_LOGGER.ERROR
    bound = profile.trt_util.trt
    if bound.__name__ != library.module.__name__:
        raise EngineBuildError(
            f"this process has built with {bound.__name__}; use another process",
            hint="build each flavour in a process of its own: run ldp-export build again",
        )
    return trt


def _write_engine(
    library: Library,
    network: Network,
    config: Any,
    signature: GraphSignature,
    path: Path,
    progress: BuildProgress,
    heard: list[Message],
) -> None:
    """Builds the engine and streams it to disk, so that its weights are never in memory twice."""
    trt = library.module
    with path.open("wb") as file:
        writer = _stream_writer(trt, file.write)
        done = network.builder.build_serialized_network_to_stream(network.network, config, writer)
        file.flush()
        os.fsync(file.fileno())
    if progress.is_stopped:
        raise EngineBuildError(
            f"the build of {signature.name!r} was stopped", hint="run the same command again: finished stages are kept"
        )
    refuse_unused(library, signature.name, heard, network.wired)
    if writer.error is not None:
        raise writer.error
    if not done or path.stat().st_size == 0:
        reasons = [message.text for message in heard if message.severity == "error"]
        raise EngineBuildError(
            f"{library.title} could not build {signature.name!r}: {'; '.join(reasons[-3:]) or 'it gave no reason'}",
            hint="run again with -v for its log; a smaller --chunk or --max-batch needs less memory",
        )


def _stream_writer(trt: Any, write: Callable[[bytes], int]) -> Any:
    class Writer(trt.IStreamWriter):
        """Writer that stores a disk error instead of raising it through the library."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None

        def write(self, data: bytes) -> int:
            try:
                return write(data)
            except OSError as error:
                self.error = error
                return 0

    return Writer()


def _save_timing_cache(library: Library, config: Any, path: Path | None) -> None:
    """Saves the measured kernels for the next build, which measures again if they cannot be written."""
    if path is None or not library.has_timing_cache:
        return
    cache = config.get_timing_cache()
    if cache is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, bytes(cache.serialize()))
    except OSError as error:
        logger.warning("the timing cache %s was not written: %s", path, error)

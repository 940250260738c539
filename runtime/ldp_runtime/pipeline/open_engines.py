"""Opening of a bundle's engines, with the constants that belong to them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file

from ldp_runtime.arguments import shown, whole_number
from ldp_runtime.bundle.files import CONSTANTS, Bundle
from ldp_runtime.bundle.manifest import FUSED_WEIGHTS, GraphEntry, Manifest, ModelEntry
from ldp_runtime.engines.base import Engine
from ldp_runtime.engines.blocks import Blocks, BlocksChunk
from ldp_runtime.engines.cache_plan import ModelShape
from ldp_runtime.engines.forks import left_alone_in_children
from ldp_runtime.engines.on_demand import OnDemandEngine
from ldp_runtime.engines.prompt import chained
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.families.base import Codec
from ldp_runtime.families.choose import codec_of, placement
from ldp_runtime.numerics import all_finite

if TYPE_CHECKING:
    from ldp_runtime.engines.graph_cache import GraphCounters


#: Threads that may be asked for on any machine.
_MOST_THREADS = 64


#: Function from a graph's name and entry to its engine.
OpenGraph = Callable[[str, GraphEntry], Engine]


@dataclass(frozen=True)
class Engines:
    """The opened engines of a bundle and the constants that belong to them.

    Attributes:
        text_encoder: engine of the text encoder; None if the bundle expects text features.
        residual: engine that adds to the last scale's codes; None for models that have none.
        codec: codec of the model's tokens.
        constants: tensors of the bundle by name.
            `level_offsets` [levels, C]: added by `blocks` to every token of scale k >= 1.
            `unconditional_text` [tokens, text_channels]: learned rows (Infinity), zeros (HART), or an encoded empty
                text (Switti).
            `positions` [tokens, C]: VAR only.
            `codebook`, `phi_weight`, `phi_bias`: VAR, Switti and HART; see `CodebookCodec`.
        cuda_graphs: counts of captured and replayed CUDA graphs; None if the backend captures none.
    """

    text_encoder: Engine | None
    prompt: Engine
    blocks: Blocks
    decoder: Engine
    codec: Codec
    constants: Mapping[str, torch.Tensor]
    cuda_graphs: GraphCounters | None = None
    residual: Engine | None = None

    def release_text_encoder(self) -> None:
        """Gives the text encoder's memory back until the next text, if it was opened for this one only."""
        if isinstance(self.text_encoder, OnDemandEngine):
            self.text_encoder.release()

    def close(self) -> None:
        for engine in (self.text_encoder, self.prompt, self.residual, self.decoder):
            if engine is not None:
                engine.close()
        self.blocks.close()


def device_of(name: str | torch.device) -> torch.device:
    """Device of a name; "cuda" becomes the calling thread's GPU, so that other threads use the same one.

    Raises:
        ConfigError: PyTorch does not know the name.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"unknown device {shown(name)}", hint="cpu or cuda") from error
    if str(device) == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def checked_threads(threads: object) -> int | None:
    """Number of threads; None leaves it to the engines.

    Raises:
        ConfigError: it is no number, or many times what any processor runs.
    """
    most = max(_MOST_THREADS, os.cpu_count() or 1)
    return None if threads is None else whole_number("threads", threads, 1, most, hint="as many as there are cores")


def check_runnable(manifest: Manifest, device: torch.device) -> None:
    """Checks that the bundle's engines run on `device` of this machine, before anything is opened or allocated.

    Raises:
        IncompatibleBundleError: they do not; the message says what is missing, or which GPU or version they are for.
    """
    from ldp_runtime.engines.onnxruntime import check_provider

    if manifest.backend == "onnxruntime":
        check_provider(device)
        return
    if manifest.backend == "torch":
        from ldp_runtime.engines.torch_compiled.compiler import check_compiler
        from ldp_runtime.engines.torch_compiled.target import check_target

        check_target(manifest.target, device)
        if manifest.has_fused_blocks:
            check_compiler(device)
        if any(graph.is_onnx for graph in manifest.graphs.values()):
            check_provider(device)
        return
    from ldp_runtime.engines.tensorrt.engine import check_machine

    check_machine(manifest, device)


def open_engines(
    bundle: Bundle,
    device: torch.device,
    threads: int | None = None,
    opener: OpenGraph | None = None,
    keeps_text_encoder: bool = True,
) -> Engines:
    """Opens all engines of a bundle on a device.

    Args:
        opener: opens other engines instead of the bundle's.
        keeps_text_encoder: False opens the text encoder when a text comes; see `Engines.release_text_encoder`.

    Raises:
        IncompatibleBundleError: see `check_runnable`; or the library refuses an engine.
        IntegrityError: an engine file is damaged.
    """
    manifest = bundle.manifest
    if opener is None:
        check_runnable(manifest, device)
    open_graph, counters = _opener(bundle, device, threads) if opener is None else (opener, None)

    def opened(kind: str, scales: str = "") -> list[tuple[GraphEntry, Engine]]:
        wanted = [item for item in manifest.graphs.items() if (item[1].kind, item[1].scales) == (kind, scales)]
        return [(graph, open_graph(name, graph)) for name, graph in sorted(wanted, key=lambda item: item[1].first)]

    def blocks_of(scales: str) -> list[BlocksChunk]:
        return [
            BlocksChunk(engine, graph.first, graph.last, frozenset(tensor.name for tensor in graph.inputs))
            for graph, engine in opened("blocks", scales)
        ]

    def text_encoder() -> Engine | None:
        if not manifest.has_text_encoder:
            return None
        if keeps_text_encoder:
            return opened("text_encoder")[0][1]
        return OnDemandEngine("text_encoder", device, lambda: opened("text_encoder")[0][1])

    constants = _load_constants(bundle, device)
    engines = Engines(
        text_encoder=text_encoder(),
        prompt=chained(opened("prompt")),
        blocks=Blocks(
            blocks_of(""),
            ModelShape.of(manifest, writes_all=opener is None and manifest.has_fused_blocks),
            {entry.name: blocks_of(entry.name) for entry in manifest.quantized},
        ),
        decoder=opened("decoder")[0][1],
        residual=opened("residual")[0][1] if manifest.model.adds_residual else None,
        codec=_codec(bundle, constants),
        constants=constants,
        cuda_graphs=counters,
    )
    return left_alone_in_children(engines)


def _load_constants(bundle: Bundle, device: torch.device) -> dict[str, torch.Tensor]:
    """Tensors of the bundle by name; raises IntegrityError if their file is damaged, or holds other than numbers."""
    path = bundle.path(CONSTANTS)
    try:
        constants = load_file(path, device=str(device))
    except Exception as error:  # the library raises several types of its own
        raise IntegrityError(f"{path} cannot be read: {error}", hint=_COPY_AGAIN) from error
    odd = [name for name, tensor in constants.items() if not tensor.is_floating_point() or not all_finite(tensor)]
    if odd:
        raise IntegrityError(f"{path} holds {odd[0]!r}, which is no finite number", hint=_COPY_AGAIN)
    return constants


def _codec(bundle: Bundle, constants: Mapping[str, torch.Tensor]) -> Codec:
    """Codec of the bundle's model; raises IntegrityError for constants that do not fit the model."""
    model = bundle.manifest.model
    try:
        for name, tensor in constants.items():
            _check_shape(name, tensor, model)
        placement(model, constants, bundle.manifest.schedule())
        return codec_of(model, constants)
    except (LookupError, RuntimeError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise IntegrityError(
            f"the constants of {bundle.folder} do not fit its model: {type(error).__name__}: {error}", hint=_COPY_AGAIN
        ) from error


#: Dimensions of the constants: sizes, or fields of the model's entry; "*" is any.
_DIMENSIONS: dict[str, tuple[str | int, ...]] = {
    "level_offsets": ("*", "width"),
    "unconditional_text": ("*", "text_channels"),
    "positions": ("*", "width"),
    "codebook": ("codes", "latent_channels"),
    "phi_weight": ("*", "latent_channels", "latent_channels", 3, 3),
    "phi_bias": ("*", "latent_channels"),
}


def _check_shape(name: str, tensor: torch.Tensor, model: ModelEntry) -> None:
    """Raises ValueError for a constant whose shape is not the model's."""
    named = _DIMENSIONS.get(name, ("*",) * tensor.dim())
    sizes = [getattr(model, size) if isinstance(size, str) and size != "*" else size for size in named]
    fits = tensor.dim() == len(sizes) and all(size in ("*", has) for size, has in zip(sizes, tensor.shape, strict=True))
    if not fits or not tensor.numel():
        raise ValueError(f"{name} is {list(tensor.shape)}, expected {sizes}")


_COPY_AGAIN = "copy the bundle again from where it was built, or rebuild it"


def _opener(bundle: Bundle, device: torch.device, threads: int | None) -> tuple[OpenGraph, GraphCounters | None]:
    """Function that opens a graph by the bundle's backend, and the backend's counters of CUDA graphs."""
    if bundle.manifest.backend == "onnxruntime":
        from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine

        return lambda name, graph: OnnxRuntimeEngine(name, bundle.path(graph.file), device, threads), None
    if bundle.manifest.backend == "torch":
        return _torch_opener(bundle, device, threads)
    from ldp_runtime.engines.tensorrt.engine import TensorRtEngine, TensorRtSession, kernels_folder

    session = TensorRtSession(bundle.manifest, device, kernels=kernels_folder(bundle.manifest))
    files = bundle.manifest.files

    def open_there(name: str, graph: GraphEntry) -> Engine:
        with torch.cuda.device(device):  # the library puts an engine on the calling thread's GPU
            return TensorRtEngine(name, bundle.path(graph.file), graph, session, files[graph.file].size)

    return open_there, session.counters


def _torch_opener(bundle: Bundle, device: torch.device, threads: int | None) -> tuple[OpenGraph, GraphCounters | None]:
    """Opener of the torch backend: packages compiled ahead, fused blocks compiled now, an 8-bit decoder in ONNX."""
    from ldp_runtime.engines.graph_cache import GraphCounters, full_scales
    from ldp_runtime.engines.torch_compiled.cuda_graphs import CudaGraphs
    from ldp_runtime.engines.torch_compiled.engine import TorchCompiledEngine
    from ldp_runtime.engines.torch_compiled.fused.engine import FusedEngine

    captures = bundle.manifest.has_fused_blocks and device.type == "cuda"
    counters = GraphCounters() if captures else None
    limits = bundle.manifest.limits
    sizes = {"tokens": limits.tokens, "text_tokens": limits.text_tokens}
    full = full_scales(bundle.manifest.schedules())

    def open_there(name: str, graph: GraphEntry) -> Engine:
        path = bundle.path(graph.file)
        if graph.is_onnx:
            from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine

            return OnnxRuntimeEngine(name, path, device, threads)
        if path.name != FUSED_WEIGHTS:
            return TorchCompiledEngine(name, path, graph, device, threads)
        graphs = None if counters is None else CudaGraphs(counters)
        return FusedEngine.load(name, path, graph, device, **sizes, threads=threads, graphs=graphs, full_scales=full)

    return open_there, counters

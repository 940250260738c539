"""Interface of a family to the build: its graphs, constants, entry in the manifest, and reference runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from ldp_runtime.architecture.choose import ModelEntry
from ldp_runtime.bundle.manifest import Precision

from ldp_export.graphs.signature import QUANTIZED
from ldp_export.models.counts import Weights
from ldp_export.models.hub_files import TEXT_ENCODERS, PartName
from ldp_export.models.registry import NamedModel

if TYPE_CHECKING:
    import torch

    from ldp_export.graphs.graph import Graph
    from ldp_export.graphs.signature import GraphSignature
    from ldp_export.quantization.ranges import Ranges
    from ldp_export.reference.quantized import EightBits
    from ldp_export.verification.cases import ReferenceCases

GraphKind = Literal["text_encoder", "prompt", "blocks", "residual", "decoder"]


class Family(Protocol):
    """One family of models. A graph's name is its kind and, for chunks, `_FIRST_LAST` of the blocks that it serves."""

    @property
    def entry(self) -> ModelEntry:
        """Description of the architecture, for the manifest."""
        ...

    @property
    def has_static_cache(self) -> bool:
        """True if its blocks can be exported with a static KV cache."""
        ...

    @property
    def fuses_attention(self) -> bool:
        """True if its blocks can be exported with attention that keeps no scores."""
        ...

    @property
    def text_tokens(self) -> int:
        """Tokens of the longest text; 0 for models that read none."""
        ...

    @property
    def tokenizer(self) -> bytes | None:
        """Content of the bundle's tokenizer.json; None without a text encoder."""
        ...

    @property
    def coverage(self) -> str:
        """Scales that the reference runs cover on this machine, in words: all, or the first ones of a large model."""
        ...

    @property
    def reference_bytes(self) -> int:
        """Bytes of the recorded reference runs."""
        ...

    @property
    def reference_memory(self) -> int:
        """Bytes of memory that recording the reference runs takes."""
        ...

    def check_files(self) -> None:
        """Compares keys and shapes of the files with the architecture, before any long work.

        Raises:
            CheckpointError: the files do not fit.
        """
        ...

    def check_text(self) -> None:
        """Checks the files beside the text encoders' weights, which can be read before the model's are there.

        Raises:
            CheckpointError: one is missing, or is of no encoder that this family reads.
        """
        ...

    def graph_names(self, chunk: int | None) -> list[str]:
        """Names of a build's graphs with `chunk` blocks per graph (None: all in one), in the order of execution."""
        ...

    def signature(self, graph: str, precision: Precision) -> GraphSignature:
        """Inputs and outputs of a graph."""
        ...

    def graph(self, graph: str, precision: Precision) -> Graph:
        """Graph to export; its weights are on the meta device, shapes without values."""
        ...

    def graph_bytes(self, graph: str, precision: Precision) -> int:
        """Bytes of a graph's weights; see `counted_bytes`."""
        ...

    def weights(self, graph: str) -> Mapping[str, torch.Tensor]:
        """Values of the graph's weights, by their names in the graph: views of the mapped files, in their types."""
        ...

    def constants(self) -> dict[str, torch.Tensor]:
        """Tensors that the runtime uses between engine calls, in float32; see `ldp_runtime.families.choose`."""
        ...

    def record(self, precision: Precision, quantized: EightBits | None, say: Callable[[str], None]) -> ReferenceCases:
        """Records runs of the reference model, against which engines are verified.

        The errors caused by rounding to `precision`, and to `quantized` at the last scales, are recorded with them.
        """
        ...


@runtime_checkable
class MeasuresRanges(Protocol):
    """A family whose reference model can be watched, so that engines hold the ranges of quantized inputs."""

    @property
    def ranges_memory(self) -> int:
        """Bytes of memory that the drawing of one prompt takes."""
        ...

    def ranges(self, prompt: str, number: int) -> Ranges:
        """Ranges of the inputs of the blocks' layers, while one image is drawn; see `infinity_ranges`."""
        ...


def loaded_graph(family: Family, name: str, precision: Precision = "float32") -> Graph:
    """Graph that can be run: its weights are in memory, in the element types of the precision."""
    graph = family.graph(name, precision)
    types = graph.weight_types()
    state = {key: value.to(types.get(key, value.dtype)) for key, value in family.weights(name).items()}
    graph.load_state_dict(state, assign=True)
    return graph.eval().requires_grad_(False)


def counted_bytes(spec: NamedModel, graph: str, precision: Precision) -> int | None:
    """Bytes of a graph's weights as the registry has counted them; None for an architecture that it does not name."""
    element = 4 if precision == "float32" else 2
    if graph == "text_encoder" and (encoder := spec.text_encoder) is not None:
        return Weights(encoder.encoder_parameters, encoder.encoder_islands).bytes(element)
    if spec.counts is None or (count := spec.counts.graphs.get(graph_kind(graph))) is None:
        return None
    depth = spec.transformer.depth
    return count.of(*graph_blocks(graph, depth), depth).bytes(element)


def chunk_names(kind: GraphKind, depth: int, chunk: int | None) -> list[str]:
    """Names of a kind's graphs: one graph, or one per chunk of blocks."""
    if chunk is None or chunk >= depth:
        return [kind]
    return [f"{kind}_{first}_{min(first + chunk, depth)}" for first in range(0, depth, chunk)]


def graph_kind(graph: str) -> GraphKind:
    """Kind of a graph or engine, from its name."""
    graph = graph.removeprefix(QUANTIZED)
    return "text_encoder" if graph == "text_encoder" else cast(GraphKind, graph.split("_")[0])


def graph_blocks(graph: str, depth: int) -> tuple[int, int]:
    """First and last block that a graph or engine serves; the text encoder, the residual and the decoder serve none."""
    graph, kind = graph.removeprefix(QUANTIZED), graph_kind(graph)
    if kind in ("text_encoder", "residual", "decoder"):
        return 0, 0
    if graph == kind:
        return 0, depth
    _, first, last = graph.split("_")
    return int(first), int(last)


def graph_parts(graph: str) -> tuple[PartName, ...]:
    """Names of the parts of the model (its sources) that hold a graph's weights."""
    of_kinds: dict[GraphKind, tuple[PartName, ...]] = {"text_encoder": TEXT_ENCODERS, "decoder": ("vae",)}
    return of_kinds.get(graph_kind(graph), ("transformer",))

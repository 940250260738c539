"""Builders for ONNX Runtime: the exported files are the engine, and any size runs."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldp_runtime.bundle.manifest import Backend, QuantizedScales, TargetEntry
from ldp_runtime.bundle.optimization_profiles import OptimizationProfile
from ldp_runtime.errors import EngineBuildError
from ldp_runtime.system.disk import scratch_path

from ldp_export.builders.base import STAGE_FILE, ExportedGraph, has_8_bit_weights, insert_8_bits
from ldp_export.graphs.signature import MODEL_FILE, QUANTIZED, GraphSignature
from ldp_export.logs import errors_only

if TYPE_CHECKING:
    from ldp_export.quantization.formats import Format


@dataclass(frozen=True)
class OnnxRuntimeBuilder:
    """Ships the graphs as they are.

    Graphs take any number of rows; `max_rows` is only the limit that the manifest and the capacity check state.
    """

    backend: Backend = "onnxruntime"
    verified_on: str | None = "cpu"
    max_rows: int = 64

    def engine_file(self, signature: GraphSignature) -> str:
        return MODEL_FILE

    def target(self) -> TargetEntry | None:
        return None

    def profiles(self, signature: GraphSignature) -> tuple[OptimizationProfile, ...]:
        return ()


DECODER = "decoder"


@dataclass(frozen=True)
class Int8Builder(OnnxRuntimeBuilder):
    """Quantizes parts of the model to 8-bit integers, and ships the other graphs as they are.

    Attributes:
        decoder: quantizes the decoder's convolutions.
        quantized: last scales at which the blocks' matrix products are quantized; None for none.
        weights_in_8_bits: stores the blocks' weights in 8 bits, for products in float32.
    """

    decoder: bool = False
    quantized: QuantizedScales | None = None
    weights_in_8_bits: bool = False

    def quantizes(self, name: str) -> bool:
        return name.startswith(QUANTIZED) or (name == DECODER and self.decoder)

    def is_static(self, name: str) -> bool:
        """True if the engine of this name has ranges that were measured before it was built."""
        return name.startswith(QUANTIZED) and self.quantized is not None and self.quantized.ranges == "static"

    def form(self) -> Format:
        from ldp_export.quantization.formats import FORMATS, SEVEN_BITS

        return FORMATS["int8"] if self.weights_in_8_bits else SEVEN_BITS

    def key(self, signature: GraphSignature) -> Mapping[str, Any]:
        if has_8_bit_weights(self, signature.name):
            return {"weights": repr(self.form())}
        if self.is_static(signature.name):
            return {"quantized": True, "form": repr(self.form())}
        if not self.quantizes(signature.name):
            return {"quantized": False}
        from ldp_export.builders.quantize import NOISY, SPREAD

        version = importlib.metadata.version("onnxruntime")
        ranges = {"noisy": NOISY, "spread": SPREAD} if signature.name == DECODER else {}
        return {"quantized": True, "weight_bits": 7, "onnxruntime": version, **ranges}

    def build(self, graph: ExportedGraph, folder: Path, say: Callable[[str], None]) -> None:
        """Writes the quantized graph, or a copy where it stays as it is.

        Raises:
            EngineBuildError: ONNX Runtime's quantizer refuses the graph.
        """
        name = graph.signature.name
        if has_8_bit_weights(self, name) or self.is_static(name):
            insert_8_bits(graph, folder, self.form(), say)
            return
        if not self.quantizes(name):
            _copy(graph.folder, folder)
            return
        from ldp_export.builders.quantize import latents_of, quantize_convolutions, quantize_products

        try:
            # The quantizer advises, at the root logger, a pre-processing that graphs of this toolkit do not need.
            with _own_copy(graph.folder, folder.parent) as own, errors_only(""):
                if name == DECODER:
                    say("measuring the ranges of its activations")
                    quantize_convolutions(own / MODEL_FILE, folder / MODEL_FILE, latents_of(graph.reference))
                else:
                    say("rounding weights")
                    quantize_products(own / MODEL_FILE, folder / MODEL_FILE)
        except Exception as error:  # onnx and onnxruntime raise many types
            option = "--int8-decoder" if name == DECODER else "--quantize"
            raise EngineBuildError(
                f"ONNX Runtime could not quantise the graph {name!r}: {error}", hint=f"build without {option}"
            ) from error


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(STAGE_FILE))


@contextmanager
def _own_copy(source: Path, parent: Path) -> Generator[Path]:
    """Temporary copy of a graph's files: onnx refuses weights that have several hard links, as published files do."""
    folder = scratch_path(parent)
    try:
        _copy(source, folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)

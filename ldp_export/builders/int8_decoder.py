"""ONNX Runtime with the decoder's convolutions in 8-bit integers.

No pruning policy touches the decoder, so the more is pruned, the larger its share. Processors with VNNI multiply
8-bit integers several times faster than floats, and pixels forgive: nothing is decided by them, unlike by logits.
All other graphs are shipped as they are.
"""

from __future__ import annotations

import importlib.metadata
import logging
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.bundle import Backend, TargetEntry
from ldp_runtime.errors import EngineBuildError
from ldp_runtime.optimization_profiles import OptimizationProfile

from ldp_export.builders.base import ExportedGraph
from ldp_export.graphs.onnx_export import MODEL_FILE
from ldp_export.graphs.signature import GraphSignature
from ldp_export.reference_cases import ReferenceCases

#: Latents per recorded one that ranges are taken from, and their noise in units of the latent's standard deviation:
#: two or three pictures alone leave ranges too narrow (39.6 dB on the worst of twelve others, 41.2 dB with these).
_NOISY, _SPREAD = 3, 0.5


@dataclass(frozen=True)
class Int8DecoderBuilder:
    """Quantises the graph `decoder`: symmetric weights per channel, activations per tensor, ranges from pictures."""

    backend: Backend = "onnxruntime"
    verified_on: str | None = "cpu"
    max_rows: int = 64
    quantized: frozenset[str] = frozenset({"decoder"})

    def engine_file(self, signature: GraphSignature) -> str:
        return MODEL_FILE

    def target(self) -> TargetEntry | None:
        return None

    def profiles(self, signature: GraphSignature) -> tuple[OptimizationProfile, ...]:
        return ()

    def key(self, signature: GraphSignature) -> Mapping[str, Any]:
        if signature.name not in self.quantized:
            return {"quantized": False}
        version = importlib.metadata.version("onnxruntime")
        return {"quantized": True, "noisy": _NOISY, "spread": _SPREAD, "onnxruntime": version}

    def build(self, graph: ExportedGraph, folder: Path, say: Callable[[str], None]) -> None:
        """Raises EngineBuildError when ONNX Runtime's quantiser refuses the graph."""
        if graph.signature.name not in self.quantized:
            shutil.copytree(graph.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("stage.json"))
            return
        say("measuring the ranges of its activations")
        try:
            quantize_convolutions(graph.folder / MODEL_FILE, folder / MODEL_FILE, latents_of(graph.reference))
        except Exception as error:  # onnxruntime raises many types
            raise EngineBuildError(
                f"ONNX Runtime could not quantise the decoder: {error}", hint="build without --int8-decoder"
            ) from error


def latents_of(reference: Path) -> list[torch.Tensor]:
    """Latents [1, d, h, w] of the recorded reference runs, and noisy ones around them."""
    cases = ReferenceCases.load(reference)
    generator = torch.Generator().manual_seed(0)
    found = [tensor[None] for name, tensor in sorted(cases.tensors.items()) if name.endswith(".latent")]
    noisy = [
        latent + _SPREAD * latent.std() * torch.randn(latent.shape, generator=generator)
        for latent in found
        for _ in range(_NOISY)
    ]
    return found + noisy


def quantize_convolutions(source: Path, target: Path, latents: list[torch.Tensor]) -> None:
    """Writes a copy of an ONNX decoder whose convolutions multiply 8-bit integers."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Latents(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[torch.Tensor] = iter(latents)

        def get_next(self) -> dict[str, Any]:  # an empty one, or None, ends the calibration
            latent = next(self._left, None)
            return {} if latent is None else {"latent": latent.numpy()}

    with _quiet():
        quantize_static(
            source,
            target,
            Latents(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )


@contextmanager
def _quiet() -> Generator[None]:
    """The quantiser advises, at the root logger, a pre-processing that graphs of this toolkit do not need."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)

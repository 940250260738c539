"""The decoder's convolutions in 8-bit integers.

No pruning policy touches the decoder, so the more is pruned, the larger its share. Processors multiply 8-bit integers
faster than floats, those with VNNI several times, and pixels forgive: nothing is decided by them, unlike by logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ldp_export.verification.reference_cases import ReferenceCases

#: Latents per recorded one that ranges are taken from, and their noise in units of the latent's standard deviation:
#: two or three pictures alone leave ranges too narrow (39.6 dB on the worst of twelve others, 41.2 dB with these).
NOISY, SPREAD = 3, 0.5


def latents_of(reference: Path) -> list[torch.Tensor]:
    """Latents [1, d, h, w] of the recorded reference runs, and noisy ones around them."""
    cases = ReferenceCases.load(reference)
    generator = torch.Generator().manual_seed(0)
    found = [tensor[None] for name, tensor in sorted(cases.tensors.items()) if name.endswith(".latent")]
    noisy = [
        latent + SPREAD * latent.std() * torch.randn(latent.shape, generator=generator)
        for latent in found
        for _ in range(NOISY)
    ]
    return found + noisy


def quantize_convolutions(source: Path, target: Path, latents: list[torch.Tensor]) -> None:
    """Writes a copy of an ONNX decoder whose convolutions multiply 8-bit integers: symmetric weights per channel,
    activations per tensor in ranges that these latents [1, d, h, w] cause."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Latents(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[torch.Tensor] = iter(latents)

        def get_next(self) -> dict[str, Any]:  # an empty one, or None, ends the calibration
            latent = next(self._left, None)
            return {} if latent is None else {"latent": latent.numpy()}

    quantize_static(
        source,
        target,
        Latents(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=True,
    )

"""Quantization of exported ONNX graphs to 8-bit integers: matrix products of blocks, convolutions of decoders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.engines.onnxruntime import import_onnxruntime

from ldp_export.verification.cases import ReferenceCases

#: Prefix of the weights that are quantized: the layers of the blocks. The embedding and the head stay as they are:
#: the one reads few channels, the other decides the tokens.
_LAYERS = "blocks."


def quantize_products(source: Path, target: Path) -> None:
    """Writes a copy of an ONNX `blocks` graph whose matrix products with weights multiply 8-bit integers.

    Raises:
        ValueError: none of the products has a weight of a block, so the copy would not be quantized.
    """
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(source, load_external_data=False).graph.node
    products = {node.name: node.input[1] for node in nodes if node.op_type == "MatMul"}
    others = [name for name, weight in products.items() if not weight.startswith(_LAYERS)]
    if len(others) == len(products):
        raise ValueError(f"none of its {len(products)} matrix products has a weight of a block")
    quantize_dynamic(
        source,
        target,
        op_types_to_quantize=["MatMul"],
        nodes_to_exclude=others,
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=True,
        use_external_data_format=True,
        extra_options={"MatMulConstBOnly": True, "DisableShapeInference": True},
    )


#: Noisy latents added for each recorded one when ranges are measured, and their noise in units of the latent's standard
#: deviation. Two or three images alone leave ranges too narrow: 39.6 dB on the worst of twelve others, 41.2 dB with the
#: noisy ones.
NOISY, SPREAD = 3, 0.5


def latents_of(reference: Path) -> list[torch.Tensor]:
    """Latents [1, d, h, w] of the recorded reference runs, and noisy copies of them."""
    cases = ReferenceCases.load(reference)
    generator = torch.Generator().manual_seed(0)
    recorded = [tensor[None] for name, tensor in sorted(cases.tensors.items()) if name.endswith(".latent")]
    noisy = [
        latent + SPREAD * latent.std() * torch.randn(latent.shape, generator=generator)
        for latent in recorded
        for _ in range(NOISY)
    ]
    return recorded + noisy


def quantize_convolutions(source: Path, target: Path, latents: list[torch.Tensor]) -> None:
    """Writes a copy of an ONNX decoder whose convolutions multiply 8-bit integers.

    Weights are quantized symmetrically per channel, activations per tensor. The ranges of the activations are measured
    on these latents [1, d, h, w].
    """
    import_onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Latents(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[torch.Tensor] = iter(latents)

        def get_next(self) -> dict[str, Any]:  # an empty dictionary, or None, ends the calibration
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

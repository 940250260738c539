"""Tolerances of verification: how far engines may be from the recorded runs, per output.

Beside these constants, each bundle records what rounding does to its own model (`rounding.py`).
"""

from __future__ import annotations

import torch
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.manifest import QuantizedPrecision, QuantizedScales

from ldp_export.verification.cases import Case, ReferenceCases
from ldp_export.verification.rounding import quantized_rounding

#: Largest absolute errors; beyond a root mean square of `UNIT` of the reference output, they grow in proportion to it.
#: Two correct float32 implementations of a model with logits of standard deviation 2.5 differ by up to 1.2e-5. For a
#: model that rounds more, the larger error was recorded with the reference runs (see rounding.py).
LOGITS, LATENT, IMAGE, FEATURES = 1.2e-5, 1e-6, 1e-4, 1e-5
#: Number of pixels up to which `IMAGE` holds; beyond, the limit grows with the number. ONNX Runtime adds up the values
#: of a group norm one after another: two correct decoders differed by 2.3e-5 at 512x512 and by 2.7e-4 at 1024x1024
#: (random weights).
IMAGE_PIXELS = 2**16
#: Limit like `LOGITS` for logits over a codebook: two implementations of VAR were found to differ by as much.
VAR_LOGITS = 3e-5
UNIT = 2.5
#: Largest RMS error of an image in [-1, 1] from a decoder in 8-bit integers: a PSNR of 32 dB.
QUANTIZED_IMAGE = 0.05
#: Largest RMS error of logits from blocks that multiply 8-bit numbers, in units of the logits' own RMS, whatever was
#: measured on the reference model. Trained models had 0.02 to 0.04 in integers, 0.05 to 0.1 in floats of 4 significant
#: bits.
QUANTIZED_LOGITS: dict[QuantizedPrecision, float] = {"int8": 0.1, "float8": 0.25}
#: Engines of a reduced precision may err by this many times the error that PyTorch makes in the same precision: they
#: add in another order, and round at other steps.
ROUNDING_SLACK = 3.0
#: Closest decision above which rounding cannot flip a bit, so that final images must agree in every bit.
CLEAR_MARGIN = 1e-4


def clear_margin(bundle: Bundle, reference: ReferenceCases, case: Case) -> float:
    """Margin of a case above which neither the engines' rounding nor that of their precision can flip a decision."""
    amplified = (2 * abs(case.guidance) + 1) / bundle.manifest.defaults.temperature
    return max(CLEAR_MARGIN, ROUNDING_SLACK * reference.rounding.get("logits", 0.0) * amplified)


def logits_tolerance(case: Case) -> float:
    """Largest error allowed in the logits of a case's family, before rounding is counted."""
    return LOGITS if case.label is None else VAR_LOGITS


def image_tolerance(image: torch.Tensor) -> float:
    """Largest error allowed in an image [3, H, W], before rounding is counted."""
    return IMAGE * max(1.0, image[0].numel() / IMAGE_PIXELS)


def allowed_in_8_bits(quantized: QuantizedScales, reference: ReferenceCases, scale: int) -> float:
    """Largest error that rounding explains in a quantized scale's logits, as a share of their RMS.

    It follows from the error that was measured when the bundle was built.
    """
    return min(QUANTIZED_LOGITS[quantized.precision], ROUNDING_SLACK * reference.rounding[quantized_rounding(scale)])

"""Limits of verification: how far engines may be from the recorded runs, per output and per scale.

A bundle records what rounding does to its own model (`bounds.py`, `rounding.py`), and its engines may err by a stated
multiple of that. Older bundles recorded less; constants hold for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.manifest import Precision, QuantizedPrecision, QuantizedScales

from ldp_export.verification.bounds import FACTOR, limit, scale_rounding, text_rounding
from ldp_export.verification.cases import Case, ReferenceCases
from ldp_export.verification.rounding import quantized_rounding

#: Engines of a reduced precision may err by this many times the error that PyTorch makes in the same precision: they
#: add in another order, and round at other steps.
ROUNDING_SLACK = 3.0
#: Largest RMS error of an image in [-1, 1] from a decoder in 8-bit integers: a PSNR of 32 dB.
QUANTIZED_IMAGE = 0.05
#: Largest RMS error of logits from blocks that multiply 8-bit numbers, in units of the logits' own RMS, whatever was
#: measured on the reference model. Trained models had 0.02 to 0.04 in integers, 0.05 to 0.1 in floats of 4 significant
#: bits.
QUANTIZED_LOGITS: dict[QuantizedPrecision, float] = {"int8": 0.1, "float8": 0.25}

#: Limits of bundles that did not record the rounding of each output. Beyond a root mean square of `_FORMER_UNIT` of the
#: reference output they grow in proportion to it.
_FORMER_LOGITS, _FORMER_VAR_LOGITS, _FORMER_UNIT = 1.2e-5, 3e-5, 2.5
_FORMER_LATENT, _FORMER_IMAGE, _FORMER_FEATURES = 1e-6, 1e-4, 1e-5
#: Number of pixels up to which `_FORMER_IMAGE` holds; beyond, it grows with the number.
_FORMER_PIXELS = 2**16
#: Closest decision above which the rounding of such bundles cannot flip a bit.
_FORMER_MARGIN = 1e-4


@dataclass(frozen=True)
class Limits:
    """Largest absolute errors that a bundle's engines may make in each output.

    Attributes:
        reference: the bundle's recorded runs.
        precision, temperature: the bundle's.
    """

    reference: ReferenceCases
    precision: Precision
    temperature: float

    @staticmethod
    def of(bundle: Bundle, reference: ReferenceCases) -> Limits:
        return Limits(reference, bundle.manifest.precision, bundle.manifest.defaults.temperature)

    @property
    def _are_former(self) -> bool:
        return "latent" not in self.reference.rounding

    def logits(self, case: Case, scale: int, expected: torch.Tensor) -> float:
        former = _FORMER_LOGITS if case.label is None else _FORMER_VAR_LOGITS
        return (
            self._former(expected, former, "logits") if self._are_former else self._own(scale_rounding(scale), expected)
        )

    def latent(self, expected: torch.Tensor) -> float:
        if self._are_former:
            return self._former(expected, _FORMER_LATENT)
        return limit(self.reference.rounding["latent"], expected)  # the codec is float32 in every precision

    def image(self, expected: torch.Tensor) -> float:
        former = _FORMER_IMAGE * max(1.0, expected[0].numel() / _FORMER_PIXELS)
        return self._former(expected, former, "image") if self._are_former else self._own("image", expected)

    def features(self, text: str, expected: torch.Tensor) -> float:
        if self._are_former:
            return self._former(expected, _FORMER_FEATURES, "features")
        return self._own(text_rounding(text), expected)

    def shape(self, key: str, expected: torch.Tensor) -> float:
        """Limit of an output of the blocks alone; `key` names it, see `Shape`."""
        return self._own(key, expected)

    def margin(self, case: Case, scales: int) -> float:
        """Closest decision of a case above which no engine within these limits flips one."""
        amplified = (2 * abs(case.guidance) + 1) / self.temperature
        if self._are_former:
            return max(_FORMER_MARGIN, ROUNDING_SLACK * self.reference.rounding.get("logits", 0.0) * amplified)
        expected = [self.reference.tensors[f"{case.name}.logits_{k}"] for k in range(scales)]
        # The margin is that of a float32 run, whose rounding counts once more.
        return 2 * max(self.logits(case, k, logits) for k, logits in enumerate(expected)) * amplified

    def _own(self, key: str, expected: torch.Tensor) -> float:
        factor = FACTOR if self.precision == "float32" else ROUNDING_SLACK
        return limit(self.reference.rounding[key], expected, factor)

    def _former(self, expected: torch.Tensor, tolerance: float, key: str = "") -> float:
        size = float(expected.double().square().mean().sqrt()) if expected.numel() else 0.0
        return max(tolerance * max(1.0, size / _FORMER_UNIT), ROUNDING_SLACK * self.reference.rounding.get(key, 0.0))


def allowed_in_8_bits(quantized: QuantizedScales, reference: ReferenceCases, scale: int) -> float:
    """Largest error that rounding explains in a quantized scale's logits, as a share of their RMS.

    It follows from the error that was measured when the bundle was built.
    """
    return min(QUANTIZED_LOGITS[quantized.precision], ROUNDING_SLACK * reference.rounding[quantized_rounding(scale)])

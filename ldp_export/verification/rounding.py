"""Rounding errors of a precision: the reference computed in it by PyTorch on the CPU, against float32.

ONNX Runtime's CPU provider has no bfloat16 products, so a bfloat16 graph is proven in steps. It equals its float32 twin
but for casts, which the export asserts. The twin passes ONNX Runtime. Here the effect of the casts is measured. The
errors are recorded with the reference runs, and limit the errors that `verify` accepts from engines in that precision.

Float32 rounds too, by an amount that depends on the model: the further training drives its weights, the more of each
sum cancels. So the same logits are computed in two ways, scale by scale and all scales in one call. Their distance is
recorded with the other errors.

The error of quantized scales depends on the model, too: it grows with the blocks' share in the decision, beside the
embedding's. It is measured on a reference model that computes in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from ldp_runtime.errors import VerificationError

from ldp_export.graphs.graph import Graph
from ldp_export.verification.cases import Case, ReferenceCases

#: Upper bound of the difference in float32 between two ways to compute logits whose root mean square is 1. At a root
#: mean square of 2 to 5, differences of 1e-5 were seen.
FLOAT32_NOISE = 2e-5


@torch.no_grad()
def measure_rounding(
    cases: ReferenceCases,
    logits: Callable[[Case], Sequence[torch.Tensor]],
    graph: Callable[[str], Graph],
) -> dict[str, float]:
    """Largest errors by kind of output: "logits", "image", "features".

    Args:
        cases: runs in float32 to compare with.
        logits: computes the logits of every scale of a case, teacher-forced, by the reference model in the precision.
        graph: returns the loaded `decoder` or `text_encoder` in the precision, by name.

    Raises:
        VerificationError: an output in the precision is not finite, so it cannot limit anything.
    """
    tensors = cases.tensors
    errors = {"logits": _largest_logits(cases, logits)}
    images = [case for case in cases.cases if not case.pruned and f"{case.name}.image" in tensors]
    if images:
        decoder = graph("decoder")
        drawn = [(decoder(tensors[f"{case.name}.latent"][None])[0], tensors[f"{case.name}.image"]) for case in images]
        errors["image"] = max(_largest(got, expected) for got, expected in drawn)
    texts = [name.removesuffix(".ids") for name in tensors if name.endswith(".ids")]
    if texts:
        encoder = graph("text_encoder")
        read = [(encoder(tensors[f"{text}.ids"][None])[0], tensors[f"{text}.features"]) for text in texts]
        errors["features"] = max(_largest(got, expected) for got, expected in read)
    for what, error in errors.items():
        if not math.isfinite(error):
            raise VerificationError(
                f"the reference model in the bundle's precision gives NaN or infinity ({what})",
                hint="the precision does not hold this model; build it in float32",
            )
    return errors


def measure_float32(cases: ReferenceCases, logits: Callable[[Case], Sequence[torch.Tensor]]) -> dict[str, float]:
    """Largest difference between the recorded logits and `logits`, computed in float32 in another way.

    Raises:
        VerificationError: the logits differ by more than rounding explains, so the reference model itself is wrong.
    """
    error = _largest_logits(cases, logits)
    recorded = [t for name, t in cases.tensors.items() if ".logits_" in name and t.numel()]
    size = max((float(t.double().square().mean().sqrt()) for t in recorded), default=0.0)
    if not error <= FLOAT32_NOISE * max(1.0, size):
        raise VerificationError(
            f"the reference model's logits, computed scale by scale and in one call, differ by {error:.3g} in float32, "
            f"at a root mean square of {size:.3g}: rounding explains {FLOAT32_NOISE * max(1.0, size):.3g}",
            hint="this is no fault of the engines; the checkpoint may hold values that float32 cannot carry",
        )
    return {"logits": error}


def measure_quantized(cases: ReferenceCases, logits: Callable[[Case], Sequence[torch.Tensor]]) -> dict[str, float]:
    """Largest RMS error of each scale's logits, in units of the logits' RMS; keys are from `quantized_rounding`.

    Args:
        cases: runs in float32 to compare with.
        logits: computes the logits of every scale of a case, teacher-forced, by blocks that multiply 8-bit numbers.
    """
    worst: dict[str, float] = {}
    for case in (case for case in cases.cases if not case.pruned):
        for k, got in enumerate(logits(case)):
            expected = cases.tensors[f"{case.name}.logits_{k}"].double()
            error = float((got.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt())
            name = quantized_rounding(k)
            worst[name] = max(worst.get(name, 0.0), error) if math.isfinite(error) else math.inf
    return worst


def quantized_rounding(scale: int) -> str:
    """Key of the error that 8-bit numbers cause in a scale's logits, in `ReferenceCases.rounding`."""
    return f"late_logits_{scale}"


def _largest_logits(cases: ReferenceCases, logits: Callable[[Case], Sequence[torch.Tensor]]) -> float:
    whole = [case for case in cases.cases if not case.pruned]
    return max((_largest_of(logits(case), cases, case) for case in whole), default=0.0)


def _largest_of(logits: Sequence[torch.Tensor], cases: ReferenceCases, case: Case) -> float:
    recorded = [cases.tensors[f"{case.name}.logits_{k}"] for k in range(len(logits))]
    return max(_largest(got, expected) for got, expected in zip(logits, recorded, strict=True))


def _largest(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute error; infinite if either side is not finite, because Python's `max` would ignore NaN."""
    error = float((got.float() - expected).abs().max())
    return error if math.isfinite(error) else math.inf

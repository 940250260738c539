"""What a precision does to a model: the reference computed in it by PyTorch on the CPU, against float32.

ONNX Runtime's CPU provider has no bfloat16 products, so a bfloat16 graph is proven in two steps: it is its float32 twin
but for casts (asserted when it is exported), the twin passes ONNX Runtime, and here the casts' effect is measured. The
errors are recorded with the reference runs, and bound what `verify` accepts of engines in that precision.

Float32 rounds too, and a model says itself how much: the further training drives its weights, the more of each sum
cancels. So the same logits are computed in two ways, scale by scale and all scales in one call, and their distance is
recorded in the same place.

What 8-bit numbers at late scales cost is a model's own, too: the more, the more its blocks decide beside the embedding.
It is measured on a reference model that computes in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from ldp_runtime.errors import VerificationError

from ldp_export.graphs.graph import Graph
from ldp_export.verification.cases import Case, ReferenceCases

#: Two ways to compute logits of a root mean square of 1 differ by less in float32: 1e-5 was seen at 2 to 5.
FLOAT32_NOISE = 2e-5


@torch.no_grad()
def measure_rounding(
    cases: ReferenceCases,
    logits: Callable[[Case], Sequence[torch.Tensor]],
    graph: Callable[[str], Graph],
) -> dict[str, float]:
    """Largest errors by kind of output: "logits", "image", "features".

    Args:
        logits: of every scale of a case, teacher-forced, by the reference model in the precision.
        graph: gives the loaded `decoder` and `text_encoder` in the precision.

    Raises:
        VerificationError: an output in the precision is not finite, so it cannot bound anything.
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
    """Largest difference between the recorded logits and `logits`, the same ones in float32 computed in another way.

    Raises:
        VerificationError: they differ by more than rounding explains: the reference model itself is wrong.
    """
    found = _largest_logits(cases, logits)
    recorded = [t for name, t in cases.tensors.items() if ".logits_" in name and t.numel()]
    size = max((float(t.double().square().mean().sqrt()) for t in recorded), default=0.0)
    if not found <= FLOAT32_NOISE * max(1.0, size):
        raise VerificationError(
            f"the reference model's logits, computed scale by scale and in one call, differ by {found:.3g} in float32, "
            f"at a root mean square of {size:.3g}: rounding explains {FLOAT32_NOISE * max(1.0, size):.3g}",
            hint="this is no fault of the engines; the checkpoint may hold values that float32 cannot carry",
        )
    return {"logits": found}


def measure_quantized(cases: ReferenceCases, logits: Callable[[Case], Sequence[torch.Tensor]]) -> dict[str, float]:
    """Largest RMS error of each scale's logits, in units of their own RMS, named by `quantized_rounding`.

    Args:
        logits: of every scale of a case, teacher-forced, by blocks that multiply 8-bit numbers.
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
    """Name of what 8-bit numbers do to a scale's logits, among the errors that are recorded."""
    return f"late_logits_{scale}"


def _largest_logits(cases: ReferenceCases, logits: Callable[[Case], Sequence[torch.Tensor]]) -> float:
    whole = [case for case in cases.cases if not case.pruned]
    return max((_largest_of(logits(case), cases, case) for case in whole), default=0.0)


def _largest_of(logits: Sequence[torch.Tensor], cases: ReferenceCases, case: Case) -> float:
    recorded = [cases.tensors[f"{case.name}.logits_{k}"] for k in range(len(logits))]
    return max(_largest(got, expected) for got, expected in zip(logits, recorded, strict=True))


def _largest(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Infinite where either side is not finite: Python's `max` would pass over NaN."""
    error = float((got.float() - expected).abs().max())
    return error if math.isfinite(error) else math.inf

"""Rounding errors of a precision: the reference computed in it by PyTorch on the CPU, against float32.

ONNX Runtime's CPU provider has no bfloat16 products, so a bfloat16 graph is proven in steps. It equals its float32 twin
but for casts, which the export asserts. The twin passes ONNX Runtime. Here the effect of the casts is measured. The
errors are recorded with the reference runs, and limit the errors that `verify` accepts from engines in that precision.

Float32 rounds too: see `bounds.py`.

The error of quantized scales depends on the model, too: it grows with the blocks' share in the decision, beside the
embedding's. It is measured on a reference model that computes in 8 bits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

import torch
from ldp_runtime.bundle.manifest import Precision
from ldp_runtime.errors import VerificationError
from torch import nn

from ldp_export.graphs.graph import Graph
from ldp_export.verification.bounds import scale_rounding, text_rounding, with_neighbours
from ldp_export.verification.cases import RESIDUAL, Case, ReferenceCases


@torch.no_grad()
def measure_rounding(
    cases: ReferenceCases,
    logits: Callable[[Case], Sequence[torch.Tensor]],
    graph: Callable[[str], Graph],
) -> dict[str, float]:
    """Largest errors of a reduced precision, by output and scale; see `ReferenceCases.rounding`.

    Args:
        cases: runs to compare with.
        logits: computes the logits of every scale of a case, teacher-forced, by the reference model in the precision.
        graph: returns the loaded `decoder` or `text_encoder` in the precision, by name.

    Raises:
        VerificationError: an output in the precision is not finite, so it cannot limit anything.
    """
    tensors, errors = cases.tensors, _errors_of_scales(cases, logits)
    images = [case for case in cases.cases if not case.pruned and f"{case.name}.image" in tensors]
    if images:
        decoder = graph("decoder")
        drawn = [(decoder(tensors[f"{case.name}.latent"][None])[0], tensors[f"{case.name}.image"]) for case in images]
        errors["image"] = max(_largest(got, expected) for got, expected in drawn)
    if f"{RESIDUAL}.residual" in tensors:
        residual = graph(RESIDUAL)
        got = residual(*(tensors[f"{RESIDUAL}.{name}"] for name in residual.signature.input_names))
        errors[RESIDUAL] = _largest(got, tensors[f"{RESIDUAL}.residual"])
    if cases.texts:
        encoder = graph("text_encoder")
        for text in cases.texts:
            got = encoder(tensors[f"{text}.ids"][None])[0]
            errors[text_rounding(text)] = _largest(got, tensors[f"{text}.features"])
    for what, error in errors.items():
        if not math.isfinite(error):
            raise VerificationError(
                f"the reference model in the bundle's precision gives NaN or infinity ({what})",
                hint="the precision does not hold this model; build it in float32",
            )
    return errors


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


def in_precision(model: nn.Module, precision: Precision, islands: re.Pattern[str]) -> None:
    """Rounds a model's parameters to a precision in place, but for those whose names match `islands`."""
    for name, parameter in model.named_parameters():
        stays = islands.match(name) is not None
        parameter.data = parameter.data.to(torch.float32 if stays else getattr(torch, precision))


def quantized_rounding(scale: int) -> str:
    """Key of the error that 8-bit numbers cause in a scale's logits, in `ReferenceCases.rounding`."""
    return f"late_logits_{scale}"


def _errors_of_scales(cases: ReferenceCases, logits: Callable[[Case], Sequence[torch.Tensor]]) -> dict[str, float]:
    errors: dict[str, float] = {}
    for case in (case for case in cases.cases if not case.pruned):
        for k, got in enumerate(logits(case)):
            error, key = _largest(got, cases.tensors[f"{case.name}.logits_{k}"]), scale_rounding(k)
            errors[key] = max(errors.get(key, 0.0), error)
    return with_neighbours(errors)


def _largest(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute error; infinite if either side is not finite, because Python's `max` would ignore NaN."""
    error = float((got.float() - expected).abs().max())
    return error if math.isfinite(error) else math.inf

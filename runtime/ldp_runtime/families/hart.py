"""HART's tokens: VAR's codebook, with a continuous residual on the codes of the last scale.

Source: mit-han-lab/hart (`HARTForT2I.autoregressive_infer_cfg`).
"""

from __future__ import annotations


def ramp_share(scale: int, scales: int) -> float:
    """Share of a scale in the ramps of guidance and smoothing; the last scale has that of the one before it."""
    return min(scale, scales - 2) / (scales - 1)


def residual_weights(weight: float, guided: bool) -> tuple[float, ...]:
    """Weights of the branches in the noise that the residual head takes off.

    They are those of the logits. Without an unconditional branch there is one, and so it is at a weight of exactly 2:
    there the original guides nothing.
    """
    return (weight, 1 - weight) if guided and weight != 2 else (1.0,)

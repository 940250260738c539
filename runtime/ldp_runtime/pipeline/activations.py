"""Bytes of what engines compute in passing, from the sizes of a model alone: no engine and no PyTorch is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ldp_runtime.bundle.manifest import ModelEntry, NoiseMode
from ldp_runtime.schedule import ScaleSchedule

if TYPE_CHECKING:
    from ldp_runtime.architecture.base import BaseEntry

#: Bytes of a float32, in which activations are counted whatever the precision: an upper bound.
_FLOAT32 = 4
#: Most channels of a decoder at full resolution (128 and 160 in the released models).
_DECODER_WIDTH = 160
#: Feature maps at full resolution that a decoder holds at once, the buffers of its convolutions included (measured on
#: Infinity-2B's: 1.34 GB at 512x512).
_DECODER_MAPS = 8


def score_bytes(model: BaseEntry, schedules: Sequence[ScaleSchedule], rows: int) -> int:
    """Bytes of the self-attention's scores [rows, heads, tokens, past + tokens] at the largest scale."""
    tokens, past = _largest(schedules)
    return _FLOAT32 * rows * model.heads * tokens * (model.prefix_tokens + past + tokens)


def layer_bytes(model: BaseEntry, schedules: Sequence[ScaleSchedule], rows: int, fused_attention: bool) -> int:
    """Bytes of the widest layer of the largest scale: tokens, and keys and values joined to their past, or scores."""
    tokens, past = _largest(schedules)
    widest = _FLOAT32 * rows * tokens * (model.ffn + 4 * model.width)
    joined = _FLOAT32 * rows * (model.prefix_tokens + past + tokens) * 2 * model.width
    return widest + joined + (joined if fused_attention else score_bytes(model, schedules, rows))


def decoder_bytes(model: BaseEntry, schedules: Sequence[ScaleSchedule]) -> int:
    """Bytes of the decoder's widest feature maps, of one image."""
    pixels = max(s.tokens[-1] for s in schedules) * model.pixels_per_token**2
    return _FLOAT32 * pixels * _DECODER_WIDTH * _DECODER_MAPS


def sampling_bytes(model: ModelEntry, schedules: Sequence[ScaleSchedule], images: int, noise: NoiseMode) -> int:
    """Bytes of what sampling makes from the logits of the largest scale, and of the noise.

    A generator's noise is there for every scale, other noise as it is drawn.
    """
    tokens, _ = _largest(schedules)
    made = _FLOAT32 * 4 * 2 * images * tokens * model.logits + _FLOAT32 * images * tokens * model.more_variates
    if noise == "generator":
        return made + _FLOAT32 * images * max(s.total_tokens for s in schedules) * model.logits
    from ldp_runtime.noise import COUNTER_NOISE_BYTES

    return made + COUNTER_NOISE_BYTES + _FLOAT32 * tokens * model.logits


def _largest(schedules: Sequence[ScaleSchedule]) -> tuple[int, int]:
    """Most tokens of a scale, and most positions of a past."""
    return max(max(s.tokens) for s in schedules), max(s.offsets[-2] for s in schedules)

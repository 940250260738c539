"""Cost of a run in floating-point operations of the blocks: exact counts, the same on every machine.

Times depend on the machine and its neighbours: a search that ranked policies by time would find other thresholds on
every run. The search therefore ranks by these counts, and only the winner is timed.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from ldp_runtime.architecture.choose import ModelEntry
from ldp_runtime.pipeline.trace import Trace
from ldp_runtime.schedule import ScaleSchedule


class BlockSizes(Protocol):
    """Sizes of a model that the counts need, of a bundle or not."""

    @property
    def depth(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def ffn(self) -> int: ...

    crosses_text: ClassVar[bool]
    ffn_matrices: ClassVar[int]


def scale_flops(model: BlockSizes, tokens: int, past: int, rows: int) -> int:
    """Operations of one engine call: projections, feed-forward, and self-attention over past and own tokens.

    Cross-attention to the few text tokens and the head are left out: under two percent.
    """
    C, token_rows = model.width, tokens * rows
    text = 2 * C * C if model.crosses_text else 0  # query and proj
    matrices = 2 * (4 * C * C + text + model.ffn_matrices * C * model.ffn)  # qkv and proj; text; ffn
    attention = 4 * (past + tokens) * C
    return model.depth * token_rows * (matrices + attention)


def trace_flops(model: ModelEntry, trace: Trace) -> int:
    """Operations of all scales of one image, for the tokens that were really computed."""
    total, past = 0, model.prefix_tokens
    for scale in trace.scales:
        total += scale_flops(model, scale.tokens, past, scale.rows)
        past += scale.tokens if model.cached_layers else 0
    return total


def full_flops(model: ModelEntry, schedule: ScaleSchedule, guided: bool) -> int:
    """Operations of the full model: every token, and both branches to the end of guidance if it is on."""
    return sum(
        scale_flops(
            model,
            tokens,
            model.prefix_tokens + (schedule.offsets[k] if model.cached_layers else 0),
            2 if guided and k < model.guided_scales else 1,
        )
        for k, tokens in enumerate(schedule.tokens)
    )

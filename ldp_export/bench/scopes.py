"""The three things a latency can mean; papers mostly time the second, users wait for the third."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ldp_export.bench.result import Sample

#: "blocks": the transformer's calls of all scales. "image": with the loop around them and the decoder, from encoded
#: text to pixels. "prompt-to-image": with the text encoder and the prompt graph.
Scope = Literal["blocks", "image", "prompt-to-image"]


def milliseconds(sample: Sample, scope: Scope) -> float:
    """What a call took within a scope."""
    return within(scope, sample.wall_ms, sample.text_ms, sample.blocks_ms)


def within(scope: Scope, wall_ms: float, text_ms: float, blocks_ms: float) -> float:
    """The part of a call that a scope times."""
    if scope == "blocks":
        return blocks_ms
    return wall_ms if scope == "prompt-to-image" else wall_ms - text_ms

"""Older spellings of policies, which saved policies, results and scripts hold."""

from __future__ import annotations

import warnings
from typing import Any

from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.policy import GuidanceRule, Policy, TokenRule
from ldp_runtime.pruning.stopping import SATS, StopAt
from ldp_runtime.pruning.tokens import LHEP, TopK, TopP

#: Names of controls, which are compositions now.
NAMES = ("skip", "stop-guidance", "fixed", "given")
#: Options by their older names.
_OPTIONS = {"prune_scales": "scales", "prune_share": "detail", "stop_threshold": "delta", "after_stop": "then"}
#: What `ld` was before it scored by LHEP's energy: files that hold the name alone mean this.
LD = Policy(TopP(0.8, score="distance", fill="zero"), SATS(9.0, then="reuse"))
_GONE = {
    "end_threshold": "ending early",
    "end_scales": "ending early",
    "fill_scale": "scaled fills",
}


def respelled(options: dict[str, str]) -> dict[str, str]:
    """Options under their names of today.

    Raises:
        ConfigError: an option that is gone.
    """
    for key in options:
        if key in _GONE:
            raise ConfigError(
                f"policies have no option {key!r}: {_GONE[key]} lost in the study", hint="see docs/results/ablation.md"
            )
    return {_OPTIONS.get(key, key): value for key, value in options.items()}


def renamed(name: str, options: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Name and options of today for an older name."""
    if name == "stop-guidance":
        return "none", {("stop" if key == "scale" else key): value for key, value in options.items()}
    stop = {} if options.get("stop_after") in (None, "none", "None") else {"stop": options["stop_after"]}
    others = {key: value for key, value in options.items() if key not in ("stop_after", "count", "keep")}
    if name == "skip":
        return "none", others | stop | {"skip_last": options.get("count", "1")}
    if name == "fixed":
        return "top-k", others | stop | {"share": options.get("keep", "0.4")}
    keep = [part for part in options.get("keep", "").split("+") if part]
    skipped = next((i for i, share in enumerate(reversed(keep)) if share.strip("0.")), len(keep))  # "0", "0.0", ...
    tokens = {"share": "+".join(keep) + "+", "score": "random", "fill": "zero"} if keep else {}
    return ("top-k" if keep else "none"), others | stop | tokens | {"skip_last": str(skipped)}


def LatentDiscrepancy(
    rho: float = 0.5,
    prune_scales: tuple[int, ...] | None = None,
    prune_share: float = 0.75,
    stop_threshold: float | None = 0.15,
    stop_scales: tuple[int, ...] | None = None,
    after_stop: Any = "conditional",
    skip_last: int = 0,
    fill: Any = "repeat",
    score: Any = "energy",
    energy_from: Any = "previous",
    gap: Any = "rms",
    border: Any = "counted",
    haar: Any = "tokens",
    fitted: Any = None,
) -> Policy:
    """LD-Pruning as one call; deprecated: compose `Policy(LHEP(...), SATS(...))`."""
    _deprecated("LatentDiscrepancy", "Policy(LHEP(rho=0.5), SATS(delta=0.15))")
    where: dict[str, Any] = {"fill": fill, "scales": _tuple(prune_scales), "detail": prune_share, "fitted": fitted}
    tokens: TokenRule | None = None
    if prune_scales is None or prune_scales:
        if score == "energy":
            tokens = LHEP(rho, energy_from=energy_from, border=border, haar=haar, **where)
        else:
            tokens = TopP(rho, score=score, **where)
    guidance: GuidanceRule | None = None
    if stop_threshold is not None:
        guidance = SATS(stop_threshold, _tuple(stop_scales), gap, after_stop)
    return Policy(tokens, guidance, skip_last)


def SkipLastScales(count: int = 1, *, stop_after: int | None = None) -> Policy:
    """Control that skips the last scales; deprecated: `Policy(skip_last=count)`."""
    _deprecated("SkipLastScales", "Policy(skip_last=1)")
    return Policy(None, _stop(stop_after), count)


def StopGuidanceAfter(scale: int) -> Policy:
    """Control that stops the branch after one scale; deprecated: `Policy(guidance=StopAt(scale))`."""
    _deprecated("StopGuidanceAfter", "Policy(guidance=StopAt(4))")
    return Policy(None, StopAt(scale))


def FixedRatio(
    keep: float = 0.4,
    score: str = "energy",
    prune_scales: tuple[int, ...] | None = None,
    fill: Any = "repeat",
    fitted: Any = None,
    *,
    stop_after: int | None = None,
) -> Policy:
    """Control with a fixed share of tokens; deprecated: `Policy(TopK(share))`."""
    _deprecated("FixedRatio", "Policy(TopK(share=0.4))")
    return Policy(TopK(keep, score=score, fill=fill, scales=_tuple(prune_scales), fitted=fitted), _stop(stop_after))


def _stop(after: int | None) -> GuidanceRule | None:
    return None if after is None else StopAt(after)


def _tuple(scales: Any) -> tuple[int, ...] | None:
    return None if scales is None else tuple(scales)


def _deprecated(name: str, instead: str) -> None:
    warnings.warn(f"{name} is deprecated; write {instead}", DeprecationWarning, stacklevel=3)

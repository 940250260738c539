"""Policies that a search tries, and the controls that it measures beside them."""

from __future__ import annotations

from ldp_runtime.pipeline.pipeline import Pipeline

_RHOS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2)
#: The last one exceeds any change: the branch then stops after the first scale where it may.
_DELTAS = (0.05, 0.15, 0.25, 0.4, 9)
_STOPS = ("stop_threshold=none", "stop_threshold=9,after_stop=reuse", "stop_threshold=0.25,after_stop=reuse")


def candidates(pipe: Pipeline) -> list[str]:
    """LHEP alone (several scores and fills), SATS alone, both, fewer pruned scales, and the controls."""
    return [
        *_lhep(),
        *(f"ld-paper:prune_scales=,stop_threshold={delta}{after}" for delta in _DELTAS for after in _after_stop()),
        *_both(),
        *(f"ld-paper:rho={rho},fill=zero,border=ignored,skip_last=1" for rho in _RHOS[1::2]),
        *_controls(len(pipe.manifest.schedule())),
    ]


def is_control(policy: str) -> bool:
    """True for the controls, which mark what pruning must beat; a search does not choose them."""
    return not policy.startswith("ld")


def _lhep() -> list[str]:
    paper = [
        f"ld-paper:rho={rho},stop_threshold=none,fill={fill}{energy}"
        for fill in ("repeat", "zero")
        for energy in ("", ",border=ignored", ",border=ignored,energy_from=computed")
        for rho in _RHOS[::2]
    ]
    fitted = [
        f"ld:rho={rho},stop_threshold=none,fill=linear,score={score},prune_share=0.75"
        for score in ("distance", "decoder", "error")
        for rho in _RHOS
    ]
    return paper + fitted


def _both() -> list[str]:
    return [
        f"ld:rho={rho},{stop},fill={fill},score={score},prune_share={share}"
        for stop in _STOPS
        for fill in ("linear", "zero")
        for score in ("distance", "error")
        for share in (0.45, 0.75)
        for rho in _RHOS[:6]
        if not (share == 0.75 and "none" in stop)
    ]


def _after_stop() -> tuple[str, ...]:
    return "", ",after_stop=reuse", ",after_stop=fitted"


def _controls(scales: int) -> list[str]:
    """Controls: skipping, stopping, both, and fixed shares."""
    stops = [k for k in (scales - 3, scales - 4) if k >= 0]
    skips = [f"skip:count={n}" for n in (1, 2) if n < scales]
    fixed = [f"fixed:keep={keep},score={score},fill=zero" for score in ("distance", "random") for keep in (0.6, 0.4)]
    return [
        *skips,
        *(f"stop-guidance:scale={k}" for k in stops),
        *(f"{control},stop_after={k}" for control in (*skips, *fixed) for k in stops[:1]),
        *fixed,
    ]

"""Policies that a search tries, and the controls that it measures beside them."""

from __future__ import annotations

from ldp_runtime.bundle.manifest import Manifest

_RHOS = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35, 0.2)
#: The last one exceeds any change: the branch then stops after the first scale where it may.
_DELTAS = (0.05, 0.15, 0.25, 0.4, 9)
_STOPS = ("delta=none", "delta=9,then=reuse", "delta=0.25,then=reuse")


def candidates(manifest: Manifest) -> list[str]:
    """LHEP alone (several scores and fills), SATS alone, both, fewer pruned scales, and the controls."""
    return [
        *_lhep(),
        *(f"ld-paper:scales=,delta={delta}{after}" for delta in _DELTAS for after in _then()),
        *_both(),
        *(f"ld-paper:rho={rho},fill=zero,border=ignored,skip_last=1" for rho in _RHOS[1::2]),
        *_controls(len(manifest.schedule())),
    ]


def is_control(policy: str) -> bool:
    """True for the controls, which mark what pruning must beat; a search does not choose them."""
    return not policy.startswith(("ld", "lhep", "top-p"))


def _lhep() -> list[str]:
    paper = [
        f"ld-paper:rho={rho},delta=none,fill={fill}{energy}"
        for fill in ("repeat", "zero")
        for energy in ("", ",border=ignored", ",border=ignored,energy_from=computed")
        for rho in _RHOS[::2]
    ]
    fitted = [
        f"ld:rho={rho},delta=none,fill=linear,score={score},detail=0.75"
        for score in ("distance", "error")
        for rho in _RHOS
    ]
    return paper + fitted


def _both() -> list[str]:
    return [
        f"ld:rho={rho},{stop},fill={fill},score={score},detail={share}"
        for stop in _STOPS
        for fill in ("linear", "zero")
        for score in ("distance", "error")
        for share in (0.45, 0.75)
        for rho in _RHOS[:6]
        if not (share == 0.75 and "none" in stop)
    ]


def _then() -> tuple[str, ...]:
    return "", ",then=reuse"


def _controls(scales: int) -> list[str]:
    """Controls: skipping, stopping, both, and fixed shares."""
    stops = [k for k in (scales - 3, scales - 4) if k >= 0]
    skips = [f"none:skip_last={n}" for n in (1, 2) if n < scales]
    fixed = [f"top-k:share={keep},score={score},fill=zero" for score in ("distance", "random") for keep in (0.6, 0.4)]
    return [
        *skips,
        *(f"none:stop={k}" for k in stops),
        *(f"{control},stop={k}" for control in (*skips, *fixed) for k in stops[:1]),
        *fixed,
    ]

"""Row of a step from the end of its process: figures of what it printed, or the error in words."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from ldp_export.gpu_report.child import Ended
from ldp_export.gpu_report.report import Benched, Built, Drawn, Failure, Figures, Machine, Row, Timed, Verified
from ldp_export.gpu_report.steps import Step

#: Most failed checks that a row names.
_NAMED = 8


def row_of(step: Step, ended: Ended) -> Row:
    """Row of a step whose process has ended, however it did."""
    error, hint, figures = "", "", None
    printed = list(_objects(ended.out))
    told = next((entry["error"] for entry in printed if isinstance(entry.get("error"), dict)), None)
    try:
        figures = _READERS[step.kind](printed)
    except (LookupError, TypeError, ValueError) as wrong:
        error = "" if told or ended.status != 0 else f"what it printed cannot be read: {type(wrong).__name__}: {wrong}"
    if told is not None:
        error, hint = str(told.get("message") or "an error without words"), str(told.get("hint") or "")
    elif ended.status != 0:
        error = ended.how
    return row(step, "failed" if error else "done", seconds=ended.seconds, error=error, hint=hint, figures=figures)


def row(step: Step, state: Any, **more: Any) -> Row:
    """Row of a step."""
    model = None if step.shape is None else step.shape.name
    return Row(
        title=step.title, kind=step.kind, model=model, backend=step.backend, device=step.device, state=state, **more
    )


def _objects(out: str) -> Iterator[dict[str, Any]]:
    """Objects among the lines that were printed; libraries print others."""
    for line in out.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _last(printed: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The last object with a field. Raises LookupError if there is none."""
    return [entry for entry in printed if name in entry][-1]


def _built(printed: list[dict[str, Any]]) -> Figures:
    said = _last(printed, "bundle")
    return Built(bundle_state=said["state"], checks=said["checks"], mebibytes=said["bytes"] / 2**20)


def _verified(printed: list[dict[str, Any]]) -> Figures:
    checks = _last(printed, "checks")["checks"]
    failed = [check for check in checks if not check["passed"]]
    shares = [_share(check["measured"], check["limit"]) for check in checks]
    return Verified(
        checks=len(checks),
        failed=len(failed),
        largest_share=_finite(max(shares, default=0.0)),
        failures=tuple(
            Failure(name=c["name"], measured=_finite(c["measured"]), limit=_finite(c["limit"])) for c in failed[:_NAMED]
        ),
    )


def _share(measured: float | None, limit: float | None) -> float:
    """Error as a share of what is allowed; infinite where it is not finite (None), or nothing is allowed."""
    if measured is None or limit is None or not math.isfinite(measured):
        return math.inf
    return measured / limit if limit else (math.inf if measured else 0.0)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _drawn(printed: list[dict[str, Any]]) -> Figures:
    return Drawn.model_validate(_last(printed, "pictures"))


def _benched(printed: list[dict[str, Any]]) -> Figures:
    return Benched(candidates=tuple(_timed(candidate) for candidate in _last(printed, "candidates")["candidates"]))


def _timed(candidate: Mapping[str, Any]) -> Timed:
    return Timed(
        name=candidate["name"],
        policy=candidate["policy"],
        p50_ms=candidate["p50_ms_per_image"],
        over_eager=candidate["speedup_vs_eager"],
        over_unpruned=candidate["speedup_vs_unpruned"],
        psnr_db=candidate["psnr_db"],
        peak_device_mb=candidate["peak_device_mb"],
    )


_READERS = {
    "machine": lambda printed: Machine.model_validate(_last(printed, "machine")),
    "build": _built,
    "verify": _verified,
    "draw": _drawn,
    "bench": _benched,
}

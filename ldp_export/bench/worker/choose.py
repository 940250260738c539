"""Chooses the candidate of a job: engines, or an eager one of the model's family."""

from __future__ import annotations

from pathlib import Path

from ldp_runtime.bundle.files import open_bundle

from ldp_export.bench.worker.candidates import Candidate, EngineCandidate
from ldp_export.bench.worker.hart import EagerHart, HartGraphs
from ldp_export.bench.worker.infinity import EagerInfinity, InfinityGraphs
from ldp_export.bench.worker.messages import Job
from ldp_export.bench.worker.switti import EagerSwitti, SwittiGraphs
from ldp_export.bench.worker.var import EagerVar, VarGraphs

#: The original loop, and the bundle's graphs in eager PyTorch, of each family.
_EAGER = {
    "infinity": (EagerInfinity, InfinityGraphs),
    "var": (EagerVar, VarGraphs),
    "switti": (EagerSwitti, SwittiGraphs),
    "hart": (EagerHart, HartGraphs),
}


def load_candidate(job: Job) -> Candidate:
    """Opens the candidate of a job. The comparison has hashed all files already, so only sizes are compared here."""
    if job.kind == "engines":
        return EngineCandidate(job)
    eager, hoisted = _EAGER[open_bundle(Path(job.bundle), integrity="sizes").manifest.model.family]
    return eager(job) if job.kind == "eager" else hoisted(job)

"""Chooses the candidate of a job: engines, or an eager one of the model's family."""

from __future__ import annotations

from ldp_export.bench.worker.candidates import Candidate, EngineCandidate
from ldp_export.bench.worker.infinity import EagerInfinity, InfinityGraphs
from ldp_export.bench.worker.messages import Job
from ldp_export.bench.worker.var import EagerVar, VarGraphs


def load_candidate(job: Job) -> Candidate:
    """Opens the candidate of a job. The comparison has hashed all files already, so only sizes are compared here."""
    if job.kind == "engines":
        return EngineCandidate(job)
    eager, hoisted = (EagerInfinity, InfinityGraphs) if job.options.classes is None else (EagerVar, VarGraphs)
    return eager(job) if job.kind == "eager" else hoisted(job)

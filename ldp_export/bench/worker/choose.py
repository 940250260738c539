"""Candidates by job: engines, or the eager ones of a family."""

from __future__ import annotations

from ldp_export.bench.worker.candidates import EngineSubject, Subject
from ldp_export.bench.worker.infinity import EagerInfinity, HoistedInfinity
from ldp_export.bench.worker.messages import Job
from ldp_export.bench.worker.var import EagerVar, HoistedVar


def load_subject(job: Job) -> Subject:
    """Opens what the job names. The comparison has hashed all files already, so only sizes are compared here."""
    if job.kind == "engines":
        return EngineSubject(job)
    eager, hoisted = (EagerInfinity, HoistedInfinity) if job.classes is None else (EagerVar, HoistedVar)
    return eager(job) if job.kind == "eager" else hoisted(job)

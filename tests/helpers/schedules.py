"""Schedules that several tests go through."""

from __future__ import annotations

from ldp_runtime.schedule import ScaleSchedule

from ldp_export.models.registry import find_model


def all_schedules(size: str) -> tuple[ScaleSchedule, ...]:
    """Schedules of Infinity at every aspect ratio of a size, the square one first."""
    return find_model("infinity-2b").schedules_of(size)

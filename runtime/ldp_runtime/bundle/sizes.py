"""Sizes of the images that a bundle draws."""

from __future__ import annotations

from ldp_runtime.bundle.manifest import Manifest


def sizes(manifest: Manifest) -> list[tuple[int, int]]:
    """All sizes (height, width) in pixels that the bundle draws."""
    grids = (schedule.final_grid for schedule in manifest.schedules())
    return [(h * manifest.model.pixels_per_token, w * manifest.model.pixels_per_token) for h, w in grids]

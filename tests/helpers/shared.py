"""Stages of builds, shared by all tests of a session and by its workers.

Stages are addressed by everything that they depend on, so what one test exports another one takes. Every build still
seals, verifies and publishes a bundle of its own. Files are copied, so no test changes another one's.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from filelock import FileLock
from ldp_runtime.bundle.files import Bundle

from ldp_export.building.build import BuildPlan, build
from ldp_export.building.cache import is_complete
from ldp_export.building.stages import BuildStages
from ldp_export.verification.verify import Report

#: Folder of the session's stages, which `conftest.py` sets; None outside a session: nothing is shared.
folder: Path | None = None


def build_shared(plan: BuildPlan) -> tuple[Bundle, Report | None]:
    """Builds a bundle like `build`, from the stages that the session has already."""
    if folder is None:
        return build(plan)
    places = [stage.place(plan.options.output / "stages") for stage in BuildStages(plan).stages()]
    name = hashlib.sha256(repr(sorted(plan.sources.hashes().items())).encode()).hexdigest()
    with FileLock(folder / f"{name}.lock"):  # another worker that builds from these files waits for its stages
        for place in places:
            if (folder / place.name).is_dir() and not place.exists():
                shutil.copytree(folder / place.name, place)
        built = build(plan)
        for place in places:
            if is_complete(place) and not (folder / place.name).exists():
                shutil.copytree(place, folder / place.name)
    return built

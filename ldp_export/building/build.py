"""Build of a bundle: resumable stages, verification, and an atomic publication."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ldp_runtime.bundle.files import REPORTS, VERSIONS, Bundle, read_state
from ldp_runtime.errors import EngineBuildError
from ldp_runtime.system.disk import exclusive, full_disk_is_typed, is_unwritable, remove_leftovers
from safetensors import SafetensorError

from ldp_export.building.cache import remove_stage, run_stages
from ldp_export.building.estimate import require_capacity
from ldp_export.building.plan import BuildOptions, BuildPlan, check_output, plan_build
from ldp_export.building.publish import assemble_version, make_current, seal, write_report
from ldp_export.building.stages import BuildStages
from ldp_export.progress import Progress, ProgressEvent, silent
from ldp_export.verification.verify import Report, require_verified, verify_bundle

__all__ = ["BuildOptions", "BuildPlan", "build", "plan_build"]


def build(plan: BuildPlan, progress: Progress = silent) -> tuple[Bundle, Report | None]:
    """Builds, verifies and publishes a bundle; the previous version serves until the new one is verified.

    Engines that cannot run on this machine are published unverified, without a report; run `verify` on their target.

    Raises:
        CapacityError: memory or disk is too small; the build has not begun.
        CheckpointError, ExportError, EngineBuildError: a stage failed; finished stages are kept for the next try.
        VerificationError: the engines are wrong; they are kept as a rejected version, and CURRENT is unchanged.
    """
    require_capacity(plan)
    root, device = plan.options.output, plan.options.builder.verified_on
    with (
        full_disk_is_typed(root, EngineBuildError),
        _unwritable_is_typed(root),
        exclusive(root / ".lock", f"build is writing to {root}"),
    ):
        check_output(root)  # again, now that no other build can change it
        for folder in (root, root / "stages", root / VERSIONS, root / REPORTS):
            folder.mkdir(exist_ok=True)
            remove_leftovers(folder)
        if plan.options.force:
            _forget_old_stages(root / "stages", {})
        work = BuildStages(plan)
        stages = work.stages()
        count = len(stages) + (device is not None)
        renumbered = _within(progress, count)
        folders = run_stages(stages, root / "stages", renumbered)
        manifest, files = seal(plan, work.sources, folders)
        folder = assemble_version(root, manifest, files)
        report = None
        if device is not None:
            report = _verify(Bundle(manifest, folder, root, "unverified"), root, device, count, progress)
        make_current(root, manifest)
        _forget_old_stages(root / "stages", folders)
    return Bundle(manifest, folder, root, read_state(root, manifest)), report


def _verify(bundle: Bundle, root: Path, device: str, count: int, progress: Progress) -> Report:
    """Verifies the bundle as the last of `count` steps, and saves the report beside it."""
    started = time.perf_counter()
    progress(ProgressEvent("verify", count - 1, count, "started"))
    report = verify_bundle(
        bundle,
        device=device,
        on_check=lambda check: progress(ProgressEvent("verify", count - 1, count, "advanced", check.name)),
    )
    write_report(root, bundle.manifest, report.to_json())
    require_verified(report, bundle)
    progress(ProgressEvent("verify", count - 1, count, "finished", seconds=time.perf_counter() - started))
    return report


@contextmanager
def _unwritable_is_typed(root: Path) -> Generator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_unwritable(error):
            raise EngineBuildError(
                f"cannot write to {root}: {error}", hint="mend its permissions, or name another --output"
            ) from error
        raise


def _within(progress: Progress, count: int) -> Progress:
    """Callback that reports stages as steps of a longer work of `count` steps: verification follows them."""

    def report(event: ProgressEvent) -> None:
        progress(ProgressEvent(event.stage, event.index, count, event.state, event.detail, event.seconds))

    return report


def _forget_old_stages(cache: Path, used: dict[str, Path]) -> None:
    """Removes stages of earlier builds and keeps those of this one, so that the cache does not grow without bound."""
    keep = {folder.name for folder in used.values()}
    for folder in cache.iterdir():
        if folder.name not in keep:
            remove_stage(folder)

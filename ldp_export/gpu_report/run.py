"""Run of a report: one step after the other, a row for each whatever happens, on disk after every one."""

from __future__ import annotations

import base64
import io
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ldp_runtime.errors import ConfigError
from ldp_runtime.system.disk import scratch_path, write_durably

from ldp_export import __version__
from ldp_export.gpu_report.child import run_child
from ldp_export.gpu_report.outcome import row, row_of
from ldp_export.gpu_report.page import page
from ldp_export.gpu_report.private import Private
from ldp_export.gpu_report.report import JSON, PAGE, Drawn, GpuReport, Machine, Picture, Row
from ldp_export.gpu_report.steps import EMBEDDED, ON_PROCESSOR, SLICE, VERDICTS, Shape, Step, bundle_path, steps

#: Minutes that all steps together may take.
MINUTES = 10.0
#: Least seconds that a step is begun with.
_LEAST = 5.0

#: Is told of each step before it begins (no row yet), and after it: its number, the number of all, and the row.
Show = Callable[[int, int, Step, Row | None], None]


def check_new_report(folder: Path) -> None:
    """Raises ConfigError if a report is in the folder already, or it is a file."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file", hint="name a folder")
    if any((folder / name).exists() for name in (JSON, PAGE)):
        raise ConfigError(f"{folder} holds a report already", hint="name another folder, or move that report away")


def write_report(
    folder: Path,
    show: Show = lambda number, count, step, row: None,
    *,
    device: str = "cuda",
    shapes: tuple[Shape, ...] = (EMBEDDED, SLICE),
    minutes: float = MINUTES,
) -> GpuReport:
    """Runs all steps and writes the report into a folder; an interrupted one holds what was done by then.

    Args:
        show: is told of each step.
        device: of the engines that are examined.
        shapes: models of the bundles.
        minutes: that all steps together may take.

    Raises:
        ConfigError: the folder holds a report already.
    """
    check_new_report(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = scratch_path(folder)
    try:
        planned = tuple(steps(scratch.absolute(), device, shapes))
        run = _Run(folder, planned, device, minutes, Private(folder.absolute(), scratch.absolute()))
        return run.all(scratch, show)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass
class _Run:
    """A run so far."""

    folder: Path
    planned: Sequence[Step]
    device: str
    minutes: float
    private: Private
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    created: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    def all(self, scratch: Path, show: Show) -> GpuReport:
        """Tries all steps in turn."""
        planned = self.planned
        for number, step in enumerate(planned):
            show(number, len(planned), step, None)
            self.rows.append(self._clean(self._compared(self._reason(step) or self._tried(step))))
            self._save(complete=number + 1 == len(planned))
            show(number, len(planned), step, self.rows[-1])
            after = planned[number + 1] if number + 1 < len(planned) else None
            if step.shape is not None and (after is None or after.shape != step.shape):
                shutil.rmtree(bundle_path(scratch, step.shape), ignore_errors=True)
        return self._report(complete=True)

    @property
    def _left(self) -> float:
        return 60 * self.minutes - (time.monotonic() - self.started)

    def _tried(self, step: Step) -> Row:
        """Row of a step that is tried, within its share of the time."""
        seconds = min(step.seconds * self.minutes / MINUTES, self._left)
        return row_of(step, run_child(step.program, step.arguments, seconds))

    def _reason(self, step: Step) -> Row | None:
        """Row of a step that is not tried, with the reason."""
        refusal = self._refusal(step)
        if refusal is not None:
            return row(step, "refused", error=refusal[0], hint=refusal[1])
        needed = next((before for before in self.rows if before.title == step.needs), None)
        if needed is not None and needed.state != "done":
            return row(step, "left out", error=f"{needed.title!r} is not done")
        if self._left < _LEAST:
            return row(step, "left out", error=f"the {self.minutes:g} minutes were over")
        return None

    def _refusal(self, step: Step) -> tuple[str, str] | None:
        """Verdict of the machine against a step, and its fix. A machine that could not be asked refuses nothing."""
        found = next((before.figures for before in self.rows if isinstance(before.figures, Machine)), None)
        if found is None or step.backend is None:
            return None
        building, running = VERDICTS[step.backend]
        # Engines that cannot run here would be built for nothing.
        draws_on_processor = any(other.needs == step.title and other.device == "cpu" for other in self.planned)
        on_processor = (step.device == "cpu" or draws_on_processor) and step.backend in ON_PROCESSOR
        wanted = {building} if on_processor else {building, running}
        verdicts = (*found.build, *found.run)
        return next(((v.reason, v.fix) for v in verdicts if v.what in wanted and not v.works), None)

    def _compared(self, tried: Row) -> Row:
        """Row of pictures with their distance from those of ONNX Runtime on the processor."""
        reference = next(
            (r for r in self.rows if isinstance(r.figures, Drawn) and r.device == "cpu" and r.model == tried.model),
            None,
        )
        if not isinstance(tried.figures, Drawn) or reference is None or not isinstance(reference.figures, Drawn):
            return tried
        known = {picture.policy: picture.png for picture in reference.figures.pictures}
        pictures = tuple(_beside(picture, known.get(picture.policy)) for picture in tried.figures.pictures)
        return tried.model_copy(update={"figures": tried.figures.model_copy(update={"pictures": pictures})})

    def _clean(self, made: Row) -> Row:
        return Row.model_validate(self.private.out_of_all(made.model_dump(mode="json")))

    def _report(self, complete: bool) -> GpuReport:
        return GpuReport(
            created=self.created,
            version=__version__,
            device=self.device,
            minutes=round((time.monotonic() - self.started) / 60, 1),
            complete=complete,
            rows=tuple(self.rows),
        )

    def _save(self, complete: bool) -> None:
        report = self._report(complete)
        write_durably(self.folder / JSON, report.text().encode())
        write_durably(self.folder / PAGE, page(report).encode())


def _beside(picture: Picture, reference: str | None) -> Picture:
    if picture.png is None or reference is None:
        return picture
    from ldp_calibration.fidelity import psnr_db

    ours, theirs = _pixels(picture.png), _pixels(reference)
    return picture if ours.shape != theirs.shape else picture.model_copy(update={"psnr_db": psnr_db(ours, theirs)})


def _pixels(png: str) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")) / 255

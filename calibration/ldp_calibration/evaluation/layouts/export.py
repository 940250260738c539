"""Export of a run's pictures into the folders that an official script reads, one for each policy."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldp_runtime.errors import ConfigError, suggestion
from ldp_runtime.system.disk import full_disk_is_typed, remove_leftovers, write_durably, written_whole
from ldp_runtime.system.small_files import read_json

from ldp_calibration.evaluation.layouts.files import LayoutFile, dpg, dpg_questions, geneval, hpsv2, imagereward
from ldp_calibration.evaluation.pictures import Picture, all_pictures, content
from ldp_calibration.evaluation.run import Run, RunPolicy


@dataclass(frozen=True)
class Layout:
    """A layout.

    Attributes:
        files: of a policy's pictures; beside: files by name that lie beside the policies' folders.
        jpeg: quality of JPEG files, which the script needs if it reads no PNG ones.
    """

    files: Callable[[Run, Sequence[Picture]], Iterator[LayoutFile]]
    jpeg: int | None = None
    beside: Callable[[Run], Mapping[str, bytes]] = lambda run: {}


#: Layouts by name.
LAYOUTS = {
    "geneval": Layout(geneval),
    "hpsv2": Layout(hpsv2, jpeg=95),
    "imagereward": Layout(imagereward),
    "dpg": Layout(dpg, beside=dpg_questions),
}
#: Record of an export, beside the policies' folders.
RECORD = "exported.json"
#: Most files that a message names.
_NAMED = 5
Report = Callable[[int, int, str], None]


def export(
    run: Run,
    layout: str,
    output: Path,
    labels: Sequence[str] = (),
    jpeg: int | None = None,
    report: Report = lambda done, total, detail: None,
) -> dict[str, int]:
    """Writes the pictures of policies below a folder. Returns the number of files by policy.

    Args:
        labels: policies, or none for all.
        jpeg: quality of JPEG files (4:2:0) in place of PNG ones.

    Raises:
        ConfigError: the layout is none, or is not for the run's prompts; or the folder holds something else.
        IntegrityError: pictures are missing or damaged. CapacityError: the disk is full.
    """
    if layout not in LAYOUTS:
        raise ConfigError(
            f"unknown layout {layout!r}", hint=f"{suggestion(layout, LAYOUTS)}there are {', '.join(LAYOUTS)}"
        )
    chosen = LAYOUTS[layout]
    quality = jpeg if jpeg is not None else chosen.jpeg
    if quality is not None and layout == "dpg":
        raise ConfigError("the script of dpg reads PNG files", hint="leave --jpeg out")
    policies = [run.settings.policy(label) for label in labels] or list(run.settings.policies)
    planned = {policy.folder: list(chosen.files(run, all_pictures(run, [policy]))) for policy in policies}
    for files in planned.values():
        _check_paths(files)
    beside = chosen.beside(run)
    settings = _settings(run, layout, quality, policies)
    _check_output(output, settings)
    total, done = sum(map(len, planned.values())), 0
    with full_disk_is_typed(output):
        output.mkdir(parents=True, exist_ok=True)
        write_durably(output / RECORD, f"{json.dumps(settings, indent=1)}\n".encode())
        for name, text in beside.items():
            write_durably(output / name, text)
        for folder, wanted in planned.items():
            for file in wanted:
                report(done, total, folder)
                _write(output / folder, file, quality)
                done += 1
    report(total, total, "")
    return {policy.label: len(planned[policy.folder]) for policy in policies}


def _settings(run: Run, layout: str, quality: int | None, policies: Sequence[RunPolicy]) -> dict[str, Any]:
    return {
        "layout": layout,
        "benchmark": run.settings.benchmark,
        "prompts_sha256": run.settings.prompts_sha256,
        "prompts": len(run.prompts),
        "bundle": run.settings.bundle,
        "jpeg": quality,
        "policies": {policy.label: policy.folder for policy in policies},
    }


def _check_paths(files: Sequence[LayoutFile]) -> None:
    """Raises ConfigError for a path that two files would have."""
    twice = [path for path, count in Counter(file.path for file in files).items() if count > 1]
    if twice:
        raise ConfigError(
            f"{len(twice)} files would be written twice: {', '.join(twice[:_NAMED])}",
            hint="give each prompt of the run an id of its own",
        )


def _check_output(output: Path, settings: dict[str, Any]) -> None:
    """Raises ConfigError for a folder that holds anything but an earlier export of these settings."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    try:
        same = read_json(output / RECORD) == settings
    except (OSError, ValueError):
        same = False
    if not same:
        raise ConfigError(f"{output} holds something else than this export", hint="name a new folder")


def _write(folder: Path, file: LayoutFile, quality: int | None) -> None:
    path = folder / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    encoded = file.text if file.text is not None else _encoded(file.pictures, quality)
    path = path.with_suffix(".jpg") if quality is not None and file.text is None else path
    with written_whole(path) as scratch:
        scratch.write_bytes(encoded)


def _encoded(pictures: Sequence[Picture], quality: int | None) -> bytes:
    """File of a picture, or of four in two rows."""
    if len(pictures) == 1 and quality is None:
        return content(pictures[0])
    from PIL import Image

    images = [Image.open(io.BytesIO(content(picture))).convert("RGB") for picture in pictures]
    image = images[0] if len(images) == 1 else _tiled(images)
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def _tiled(images: Sequence[Any]) -> Any:
    from PIL import Image

    width, height = images[0].size
    tiled = Image.new("RGB", (2 * width, 2 * height))
    for i, image in enumerate(images):
        tiled.paste(image, (i % 2 * width, i // 2 * height))
    return tiled

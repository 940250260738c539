"""Report: what a machine has, and a row for each step that was tried on it. One JSON file, of a versioned schema."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from ldp_runtime.bundle.parsing import complaint
from ldp_runtime.errors import ConfigError
from ldp_runtime.system.small_files import json_text, parse_json, read_small
from pydantic import BaseModel, ConfigDict, Field

SCHEMA = "ldp-export/gpu-report/1"
JSON, PAGE = "gpu-report.json", "gpu-report.html"

#: Kinds of steps, in their order for one bundle.
Kind = Literal["machine", "build", "verify", "draw", "bench"]
#: End of a step. Refused: the machine lacks what it needs. Left out: a step that it builds on did not succeed, or the
#: time was up.
State = Literal["done", "failed", "refused", "left out"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fact(_Part):
    """Something that the machine has, or lacks; see `ldp_export.inspection.doctor`."""

    name: str
    value: str
    found: bool = True


class Verdict(_Part):
    """A backend that can be built for or run here, or the reason and the fix."""

    what: str
    works: bool
    reason: str = ""
    fix: str = ""


class Machine(_Part):
    """Hardware, libraries and verdicts, as `ldp-export doctor` tells them."""

    kind: Literal["machine"] = "machine"
    machine: tuple[Fact, ...]
    packages: dict[str, str]
    build: tuple[Verdict, ...]
    run: tuple[Verdict, ...]


class Built(_Part):
    """A bundle that was built."""

    kind: Literal["build"] = "build"
    bundle_state: str
    checks: int
    mebibytes: float


class Failure(_Part):
    """A check that an engine did not pass: its error, and what is allowed; None: not finite."""

    name: str
    measured: float | None
    limit: float | None


class Verified(_Part):
    """A verification on the device.

    Attributes:
        largest_share: largest error as a share of what is allowed; None: not finite.
        failures: the first checks that failed.
    """

    kind: Literal["verify"] = "verify"
    checks: int
    failed: int
    largest_share: float | None
    failures: tuple[Failure, ...] = ()


class Picture(_Part):
    """A picture.

    Attributes:
        tokens, tokens_full: tokens computed, and of the whole schedule.
        seconds: of the call, once everything is warm.
        png: the file in base64; None for random weights, which draw noise.
        psnr_db: against the picture of ONNX Runtime on the processor, of the same seed and policy; None without one.
    """

    policy: str
    tokens: int
    tokens_full: int
    seconds: float
    png: str | None = None
    psnr_db: float | None = None


class Drawn(_Part):
    """Pictures, and memory of the device: predicted, and most in use while they were drawn, both in bytes."""

    kind: Literal["draw"] = "draw"
    pictures: tuple[Picture, ...]
    load_s: float
    predicted_bytes: int
    used_bytes: int
    cuda_graphs: int | None = None


class Timed(_Part):
    """A candidate of a comparison; times of one picture, from prompt to pixels."""

    name: str
    policy: str
    p50_ms: float
    over_eager: float | None
    over_unpruned: float | None
    psnr_db: float | None
    peak_device_mb: float | None


class Benched(_Part):
    """A comparison of speed."""

    kind: Literal["bench"] = "bench"
    candidates: tuple[Timed, ...]


Figures = Annotated[Machine | Built | Verified | Drawn | Benched, Field(discriminator="kind")]


class Row(_Part):
    """One step, and how it ended.

    Attributes:
        title: the step in words.
        device: on which it ran, "cpu" or "cuda"; None where there is no choice.
        seconds: that it took.
        error, hint: reason for which it is not done, and what would help.
        figures: what it found, also of a verification that failed.
    """

    title: str
    kind: Kind
    model: str | None = None
    backend: str | None = None
    device: str | None = None
    state: State
    seconds: float = 0.0
    error: str = ""
    hint: str = ""
    figures: Figures | None = None


class GpuReport(_Part):
    """The whole report; complete only once every step has its row."""

    format: Literal["ldp-export/gpu-report/1"] = SCHEMA
    created: str
    version: str
    device: str
    minutes: float
    complete: bool
    rows: tuple[Row, ...]

    def text(self) -> str:
        """The report as JSON."""
        return json_text(self.model_dump(mode="json"), indent=1) + "\n"


def read_report(path: Path) -> GpuReport:
    """Reads a report that somebody sent.

    Raises:
        ConfigError: it is none, or of another version.
    """
    try:
        return GpuReport.model_validate(parse_json(read_small(path)))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is no report of {SCHEMA}: {complaint(error)}", hint="ask for the file gpu-report.json anew"
        ) from error

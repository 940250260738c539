"""Steps of a report, in the order in which they are worth most if the time runs out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ldp_runtime.bundle.manifest import Backend

from ldp_export.gpu_report.child import OWN, VERB
from ldp_export.gpu_report.report import Kind

#: Backends. With the embedded model ONNX Runtime comes first, whose pictures on the processor the others' are compared
#: with. With random weights it comes last: those of its precision share no stage with it.
BACKENDS: tuple[Backend, ...] = ("onnxruntime", "tensorrt", "tensorrt-rtx", "torch")
#: Verdicts of the machine that decide if a backend is tried: to build, and to run on a GPU.
VERDICTS = {
    "onnxruntime": ("onnxruntime graphs", "onnxruntime bundles on the GPU"),
    "tensorrt": ("tensorrt engines", "tensorrt bundles"),
    "tensorrt-rtx": ("tensorrt-rtx engines", "tensorrt-rtx bundles"),
    "torch": ("torch engines", "torch bundles that were built on this GPU"),
}
#: Backends whose engines may also run on the processor.
ON_PROCESSOR = ("onnxruntime", "torch")
#: Most seconds of each kind of step in a report of ten minutes; a longer one gives more.
SECONDS: dict[Kind, float] = {"machine": 60, "build": 180, "verify": 90, "draw": 90, "bench": 90}


@dataclass(frozen=True)
class Shape:
    """A model that needs no download: the embedded one, or random weights of a registry model with fewer blocks.

    Attributes:
        options: of `ldp-export build`.
        timed: options of `ldp-export bench`.
    """

    name: str
    options: tuple[str, ...]
    timed: tuple[str, ...]
    is_random: bool


EMBEDDED = Shape(
    "infinity-shapes",
    ("--model", "infinity-shapes"),
    ("--prompt", "a red circle", "--policy", "ld", "--policy", "ld-skip-2", "--repeats", "5"),
    is_random=False,
)
SLICE = Shape(
    "two blocks of infinity-8b",
    ("--model", "infinity-8b", "--random-weights", "--depth", "2", "--size", "0.06M"),
    ("--repeats", "5"),
    is_random=True,
)


@dataclass(frozen=True)
class Step:
    """One step: what runs in a process of its own, and what it builds on.

    Attributes:
        program: that of the process; see `ldp_export.gpu_report.child`.
        needs: the step whose success it needs, by its title.
    """

    title: str
    kind: Kind
    program: str
    arguments: tuple[str, ...]
    shape: Shape | None = None
    backend: str | None = None
    device: str | None = None
    needs: str | None = None

    @property
    def seconds(self) -> float:
        return SECONDS[self.kind]


def steps(folder: Path, device: str, shapes: tuple[Shape, ...] = (EMBEDDED, SLICE)) -> Iterator[Step]:
    """Steps of a report; those of one bundle follow one another.

    Args:
        folder: for bundles.
        device: of the engines that are examined.
    """
    yield Step("the machine", "machine", OWN, ("machine",))
    for shape in shapes:
        for backend in (*BACKENDS[1:], BACKENDS[0]) if shape.is_random else BACKENDS:
            yield from _of_bundle(folder, shape, backend, device)


def bundle_path(folder: Path, shape: Shape) -> Path:
    """Path of the bundles of a model: those of later backends reuse the stages of earlier ones."""
    return folder / shape.name.replace(" ", "-")


def _of_bundle(folder: Path, shape: Shape, backend: str, device: str) -> Iterator[Step]:
    bundle = str(bundle_path(folder, shape))

    def step(words: str, kind: Kind, program: str, *arguments: str, on: str | None = device) -> Step:
        where = " on the processor" if on == "cpu" != device else ""
        title = f"{words} {shape.name}{where} ({backend})"
        needs = None if kind == "build" else f"build {shape.name} ({backend})"
        return Step(title, kind, program, arguments, shape, backend, on, needs)

    drawing = ("draw", bundle, "random" if shape.is_random else "trained")
    yield step(
        "build", "build", VERB, "build", *shape.options, "--backend", backend, "--output", bundle, "--json", on=None
    )
    if backend == "onnxruntime" and device != "cpu" and not shape.is_random:
        yield step("draw", "draw", OWN, *drawing, "cpu", on="cpu")
    yield step("verify", "verify", VERB, "verify", bundle, "--device", device, "--json")
    yield step("draw", "draw", OWN, *drawing, device)
    yield step("time", "bench", VERB, "bench", bundle, "--device", device, *shape.timed, "--json")

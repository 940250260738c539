"""Building a bundle: plan, resumable stages, verification, and an atomic publication."""

from __future__ import annotations

import errno
import importlib.metadata
import platform
import re
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout
from ldp_runtime.bundle import (
    CONSTANTS,
    REFERENCE,
    REPORTS,
    SCHEMA_VERSION,
    TOKENIZER,
    VERSIONS,
    Bundle,
    GraphEntry,
    Limits,
    Manifest,
    TensorEntry,
    describe_files,
    read_state,
)
from ldp_runtime.errors import CapacityError, ConfigError, EngineBuildError
from safetensors import SafetensorError
from safetensors.torch import save_file

from ldp_export import __version__
from ldp_export.builders.base import Builder, Compiler, ExportedGraph, Quantizer
from ldp_export.builders.onnxruntime import OnnxRuntimeBuilder
from ldp_export.graphs.onnx_export import OPSET, export_graph
from ldp_export.models.registry import NamedModel
from ldp_export.models.sources import Sources
from ldp_export.progress import Progress, ProgressEvent, silent
from ldp_export.publish import assemble_version, make_current, write_report
from ldp_export.recipes import recipe_for
from ldp_export.recipes.base import Recipe, block_bounds
from ldp_export.stages import SCRATCH, STAGE_FILE, Stage, remove_leftovers, run_stages
from ldp_export.verify import Report, require_verified, verify_bundle

#: Ends the name of a stage that compiles the graph whose name comes before it.
_ENGINE = ".engine"
#: Bytes written per byte of sources: a 16-bit checkpoint doubles when its graphs are float32.
_DISK_FACTOR = 2.2


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        output: path of the bundle.
        size: scale schedule, or None for the model's own.
        chunk: blocks per `blocks` graph, or None for all in one.
        force: build every stage anew.
        builder: the backend.
    """

    output: Path
    size: str | None = None
    chunk: int | None = None
    force: bool = False
    builder: Builder = field(default_factory=OnnxRuntimeBuilder)


@dataclass(frozen=True)
class BuildPlan:
    """A checked build: what it will do and need. Making one reads headers, not weights."""

    spec: NamedModel
    sources: Sources
    options: BuildOptions

    @cached_property
    def recipe(self) -> Recipe:
        return recipe_for(self.spec, self.sources, self.options.size)

    @property
    def graph_names(self) -> list[str]:
        names = ["prompt", *(f"blocks_{a}_{b}" for a, b in self.chunks), "decoder"]
        if len(self.chunks) == 1:
            names[1] = "blocks"
        return (["text_encoder"] if self.sources.text_encoder else []) + names

    @property
    def chunks(self) -> list[tuple[int, int]]:
        depth = self.spec.transformer.depth
        step = self.options.chunk or depth
        return [(first, min(first + step, depth)) for first in range(0, depth, step)]

    @property
    def disk_bytes(self) -> int:
        """Bytes the build writes at most: float32 weights and the recorded reference runs."""
        return int(self.sources.size() * _DISK_FACTOR) + 64 * 2**20

    def to_json(self) -> dict[str, object]:
        return {
            "model": self.spec.name,
            "size": self.recipe.entry.size,
            "sources": {part: str(path) for part, path in self.sources.items()},
            "output": str(self.options.output),
            "graphs": self.graph_names,
            "backend": self.options.builder.backend,
            "disk_bytes": self.disk_bytes,
        }


def plan_build(spec: NamedModel, sources: Sources, options: BuildOptions) -> BuildPlan:
    """Checks everything that can be checked before work begins.

    Raises:
        ConfigError: unknown size, impossible chunk, or an output path that is no bundle.
        CheckpointError: files whose keys and shapes are not those of the architecture.
        CapacityError: the disk is too small.
    """
    plan = BuildPlan(spec, sources, options)
    if options.chunk is not None and options.chunk < 1:
        raise ConfigError(f"a chunk needs at least one block, got {options.chunk}")
    _check_output(options.output)
    plan.recipe.check_files()
    free = shutil.disk_usage(_existing_parent(options.output)).free
    if plan.disk_bytes > free:
        raise CapacityError(
            f"the build needs up to {plan.disk_bytes / 2**30:.1f} GiB on the disk of {options.output}, "
            f"{free / 2**30:.1f} GiB are free",
            hint="free some space, or choose another --output",
        )
    return plan


def _check_output(output: Path) -> None:
    parent = _existing_parent(output)
    if not parent.is_dir():
        raise ConfigError(f"{parent} is a file", hint="name a folder as the output")
    known = {VERSIONS, "stages", "reports", "profiles", "CURRENT", ".lock"}
    names = [path.name for path in output.iterdir()] if output.exists() else []
    foreign = [name for name in names if name not in known and not name.startswith(SCRATCH)]
    if foreign:
        raise ConfigError(
            f"the output {output} holds other things: {', '.join(sorted(foreign)[:5])}",
            hint="name an empty folder, a new one, or the bundle to rebuild",
        )


def _existing_parent(path: Path) -> Path:
    path = path.resolve()
    return path if path.exists() else _existing_parent(path.parent)


def build(plan: BuildPlan, progress: Progress = silent) -> tuple[Bundle, Report | None]:
    """Builds, verifies and publishes a bundle; the previous version serves until the new one is verified.

    Engines that cannot run on this machine are published unverified, without a report: `verify` on their target is
    what proves them.

    Raises:
        CheckpointError, ExportError, EngineBuildError: a stage failed; finished stages are kept for the next try.
        VerificationError: the engines are wrong; they are kept as a rejected version, CURRENT is unchanged.
    """
    root = plan.options.output
    with _disk_errors(root), _exclusive(root):
        for folder in (root, root / "stages", root / VERSIONS, root / REPORTS):
            remove_leftovers(folder)
        if plan.options.force:
            shutil.rmtree(root / "stages", ignore_errors=True)
        work = _Work(plan)
        stages = work.stages()
        count = len(stages) + plan.options.builder.runs_here
        renumbered = _within(progress, count)
        folders = run_stages(stages, root / "stages", renumbered)
        manifest, files = _manifest(plan, work, folders)
        folder = assemble_version(root, manifest, files)
        report = None
        if plan.options.builder.runs_here:
            report = _verify(Bundle(manifest, folder, root, "unverified"), root, count, progress)
        make_current(root, manifest)
        _forget_old_stages(root / "stages", folders)
    return Bundle(manifest, folder, root, read_state(root, manifest)), report


def _verify(bundle: Bundle, root: Path, count: int, progress: Progress) -> Report:
    """Checks the bundle as the last of `count` steps, and keeps the report beside it."""
    progress(ProgressEvent("verify", count - 1, count, "started"))
    report = verify_bundle(
        bundle, on_check=lambda check: progress(ProgressEvent("verify", count - 1, count, "advanced", check.name))
    )
    write_report(root, bundle.manifest, report.to_json())
    require_verified(report, bundle)
    progress(ProgressEvent("verify", count - 1, count, "finished"))
    return report


@contextmanager
def _exclusive(root: Path) -> Generator[None]:
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise ConfigError(
            f"another build is writing to {root}", hint="wait for it, or name another --output"
        ) from error


@contextmanager
def _disk_errors(root: Path) -> Generator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise EngineBuildError(
                f"the disk of {root} is full", hint="free some space and run the command again: it resumes"
            ) from error
        if number in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise EngineBuildError(f"cannot write to {root}: {error}") from error
        raise


def _error_number(error: OSError | SafetensorError) -> int | None:
    """The system's error number; safetensors has it in its message only."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _within(progress: Progress, count: int) -> Progress:
    def report(event: ProgressEvent) -> None:
        progress(ProgressEvent(event.stage, event.index, count, event.state, event.detail, event.seconds))

    return report


class _Work:
    """The stages of a plan; the recipe loads models when the first stage that is not cached asks for them."""

    def __init__(self, plan: BuildPlan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.hashes = plan.sources.hashes()

    def stages(self) -> list[Stage]:
        """Export of each graph, constants, and the reference runs."""
        stages = []
        if self.plan.sources.text_encoder is not None:
            stages += self._graph_stages("text_encoder", ("text_encoder",))
        stages += self._graph_stages("prompt", ("transformer",))
        for name in (name for name in self.plan.graph_names if name.startswith("blocks")):
            stages += self._graph_stages(name, ("transformer",))
        stages += self._graph_stages("decoder", ("vae",))
        inputs = {"sources": self.hashes, "toolchain": toolchain(), "spec": asdict(self.plan.spec)}
        stages.append(Stage("constants", inputs, self._write_constants))
        quantizes = isinstance(self.plan.options.builder, Quantizer)  # which takes ranges from the recorded runs
        stages.insert(0 if quantizes else len(stages), self._reference_stage())
        return stages

    def _reference_stage(self) -> Stage:
        inputs = {"sources": self.hashes, "toolchain": toolchain(), "spec": asdict(self.plan.spec)}
        return Stage(REFERENCE, inputs | {"size": self.recipe.entry.size}, self._record)

    def _graph_stages(self, name: str, parts: tuple[str, ...]) -> list[Stage]:
        """The export of a graph and, where the backend compiles, its engine."""
        export, builder = self._graph_stage(name, parts), self.plan.options.builder
        if not isinstance(builder, Compiler):
            return [export]
        signature, cache = self.recipe.signature(name), self.plan.options.output / "stages"
        inputs = {"graph": export.key, **builder.key(signature)}

        def compile_engine(folder: Path, say: Callable[[str], None]) -> None:
            reference = self._reference_stage().place(cache)
            graph = ExportedGraph(signature, export.place(cache), lambda: self.recipe.graph(name), reference)
            builder.build(graph, folder, say)

        return [export, Stage(name + _ENGINE, inputs, compile_engine)]

    def _graph_stage(self, name: str, parts: tuple[str, ...]) -> Stage:
        inputs = {
            "sources": {part: self.hashes[part] for part in parts},
            "architecture": asdict(self.plan.spec.vae if parts == ("vae",) else self.plan.spec.transformer),
            "opset": OPSET,
            "precision": "float32",
            "toolchain": toolchain(),
        }
        return Stage(name, inputs, lambda folder, say: export_graph(self.recipe.graph(name), folder))

    def _write_constants(self, folder: Path, say: Callable[[str], None]) -> None:
        save_file(self.recipe.constants(), folder / CONSTANTS)
        if self.recipe.tokenizer is not None:
            shutil.copyfile(self.recipe.tokenizer, folder / TOKENIZER)

    def _record(self, folder: Path, say: Callable[[str], None]) -> None:
        self.recipe.record(say).save(folder)


def toolchain() -> dict[str, str]:
    """Versions that a graph depends on."""
    names = ("torch", "onnx", "onnx-ir", "onnxscript", "transformers")
    versions = {name: importlib.metadata.version(name) for name in names}
    return versions | {"ldp-export": __version__, "python": platform.python_version()}


def _manifest(plan: BuildPlan, work: _Work, folders: dict[str, Path]) -> tuple[Manifest, dict[str, Path]]:
    """The sealed manifest, and where each of the version's files lies now."""
    files: dict[str, Path] = {}
    builder = plan.options.builder
    for stage, folder in folders.items():
        if stage + _ENGINE in folders:
            continue  # the engine is what ships, not the graph it was made of
        stage = stage.removesuffix(_ENGINE)
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != STAGE_FILE):
            inside = str(path.relative_to(folder))
            files[inside if stage == "constants" else f"{stage}/{inside}"] = path
    graphs = {}
    for name in plan.graph_names:
        signature, is_blocks = plan.recipe.signature(name), name.startswith("blocks")
        first, last = block_bounds(name, plan.spec.transformer.depth) if is_blocks else (0, 0)
        graphs[name] = GraphEntry(
            kind="blocks" if is_blocks else name,  # pyright: ignore[reportArgumentType]
            file=f"{name}/{builder.engine_file}",
            inputs=_tensors(signature.inputs),
            outputs=_tensors(signature.outputs),
            first=first,
            last=last,
            profiles=builder.profiles(signature),
            quantized=isinstance(builder, Quantizer) and name in builder.quantized,
        )
    model = plan.recipe.entry
    schedules = [model.schedule(ratio) for ratio in model.aspect_ratios]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        model=model,
        defaults=plan.spec.defaults,
        limits=Limits(
            rows=builder.max_rows,
            text_tokens=plan.recipe.text_tokens,
            tokens=max(max(s.tokens) for s in schedules),
            past=max(s.offsets[-2] for s in schedules),
        ),
        backend=builder.backend,
        target=builder.target(),
        precision="float32",
        graphs=graphs,
        files={name: describe_files(path.parent, [path.name])[path.name] for name, path in sorted(files.items())},
        sources=work.hashes,
        toolchain=toolchain(),
        has_text_encoder=plan.sources.text_encoder is not None,
    ).sealed()
    return manifest, files


def _tensors(specs: tuple) -> tuple[TensorEntry, ...]:
    return tuple(
        TensorEntry(name=s.name, shape=tuple(d if isinstance(d, int) else str(d) for d in s.shape), dtype=s.dtype)
        for s in specs
    )


def _forget_old_stages(cache: Path, used: dict[str, Path]) -> None:
    """Keeps the stages of this build and drops those of earlier ones: the cache does not grow without bound."""
    keep = {folder.name for folder in used.values()}
    for folder in cache.iterdir():
        if folder.is_dir() and folder.name not in keep:
            shutil.rmtree(folder, ignore_errors=True)

"""Publication of a bundle: its manifest, a version that appears whole or not at all, one atomic replacement."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from pathlib import Path

from ldp_runtime.bundle.files import CURRENT, MANIFEST, REPORTS, VERSIONS, check_files, read_manifest, report_path
from ldp_runtime.bundle.manifest import SCHEMA_VERSION, FileEntry, GraphEntry, Limits, Manifest, SourcePart
from ldp_runtime.disk import SCRATCH, write_durably
from ldp_runtime.errors import LdpError

from ldp_export.builders.base import is_quantized, quantized_scales
from ldp_export.building.cache import files_of
from ldp_export.building.plan import BuildPlan
from ldp_export.building.stages import ENGINE, toolchain
from ldp_export.families.base import graph_blocks, graph_kind
from ldp_export.graphs.signature import LAST_SCALES, QUANTIZED, tensor_entries


def seal(plan: BuildPlan, sources: dict[str, SourcePart], folders: dict[str, Path]) -> tuple[Manifest, dict[str, Path]]:
    """Manifest of the version to publish, with its digest, and the present path of each of the version's files.

    Args:
        sources: origin of each part of the model.
        folders: folder of each stage.
    """
    builder, model = plan.options.builder, plan.family.entry
    quantized = quantized_scales(builder)
    places, files = _files(folders)
    schedules = [model.schedule(ratio) for ratio in model.aspect_ratios]
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        model=model,
        defaults=plan.spec.defaults,
        limits=Limits(
            rows=builder.max_rows,
            text_tokens=plan.family.text_tokens,
            tokens=max(max(s.tokens) for s in schedules),
            past=max(s.offsets[-2] for s in schedules),
        ),
        backend=builder.backend,
        target=builder.target(),
        precision=plan.options.precision,
        quantized=() if quantized is None else (quantized,),
        graphs={name: _graph(plan, name) for graph in plan.graph_names for name in plan.engine_names(graph)},
        files=files,
        sources=sources,
        toolchain=toolchain(),
        has_text_encoder=plan.sources.text_encoder is not None,
    ).sealed()
    return manifest, places


def _files(folders: dict[str, Path]) -> tuple[dict[str, Path], dict[str, FileEntry]]:
    """Present paths of the version's files, and their sizes and hashes as the stages noted them."""
    places: dict[str, Path] = {}
    entries: dict[str, FileEntry] = {}
    for stage, folder in folders.items():
        if stage + ENGINE in folders:
            continue  # the engine ships, not the graph that it was built from
        prefix = "" if stage == "constants" else stage.removesuffix(ENGINE) + "/"
        for inside, entry in files_of(folder).items():
            places[prefix + inside] = folder / inside
            entries[prefix + inside] = entry
    return places, dict(sorted(entries.items()))


def _graph(plan: BuildPlan, name: str) -> GraphEntry:
    builder, signature = plan.options.builder, plan.signature(name.removeprefix(QUANTIZED))
    first, last = graph_blocks(name, plan.spec.transformer.depth)
    return GraphEntry(
        kind=graph_kind(name),
        file=f"{name}/{builder.engine_file(signature)}",
        inputs=tensor_entries(signature.inputs),
        outputs=tensor_entries(signature.outputs),
        first=first,
        last=last,
        profiles=builder.profiles(signature),
        quantized=is_quantized(builder, name),
        scales=LAST_SCALES if name.startswith(QUANTIZED) else "",
    )


def assemble_version(root: Path, manifest: Manifest, files: dict[str, Path]) -> Path:
    """Puts a version's files (name in the bundle -> present path) under `root/versions`; returns the version's folder.

    Files are linked if the file system can, so that stages and versions share their disk space.
    """
    place = root / VERSIONS / manifest.version
    if _is_whole(place, manifest):
        return place  # content-addressed: the same files are already there
    scratch, damaged = (root / VERSIONS / f"{SCRATCH}{uuid.uuid4().hex}" for _ in range(2))
    try:
        for name, source in files.items():
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(source, target)
        write_durably(scratch / MANIFEST, manifest.model_dump_json(indent=1).encode())
        if place.exists():
            place.rename(damaged)
        scratch.rename(place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)
    return place


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """True if `folder` holds the version with all its files as they were built."""
    try:
        check_files(folder, read_manifest(folder).files, "full")
    except LdpError:
        return False
    return read_manifest(folder).digest == manifest.digest


def _link(source: Path, target: Path) -> None:
    source.chmod(0o644)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def make_current(root: Path, manifest: Manifest) -> None:
    """Points CURRENT at a version, atomically; keeps the version that it named before, and removes older ones."""
    pointer = root / CURRENT
    before = pointer.read_text().strip() if pointer.is_file() else ""
    write_durably(pointer, f"{manifest.version}\n".encode())
    for folder in (root / VERSIONS).iterdir():
        if folder.is_dir() and folder.name not in (manifest.version, before):
            shutil.rmtree(folder, ignore_errors=True)
            (root / REPORTS / f"{folder.name}.json").unlink(missing_ok=True)


def write_report(root: Path, manifest: Manifest, report: dict) -> Path:
    """Saves the report of a verification beside the version."""
    path = report_path(root, manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json.dumps(report, indent=1).encode())
    return path

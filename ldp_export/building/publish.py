"""Publication of a bundle: its manifest, a version that appears whole or not at all, one atomic replacement."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from ldp_runtime.bundle.files import (
    CURRENT,
    MANIFEST,
    PREVIOUS,
    VERSION_NAME,
    VERSIONS,
    check_files,
    check_manifest,
    read_manifest,
    read_state,
    report_path,
)
from ldp_runtime.bundle.manifest import SCHEMA_VERSION, FileEntry, GraphEntry, Limits, Manifest, SourcePart
from ldp_runtime.errors import LdpError
from ldp_runtime.system.disk import is_full, put_in_place, remove_files, scratch_path, sync, sync_tree, write_durably
from ldp_runtime.system.small_files import json_text, read_small, stays_inside

from ldp_export.builders.base import has_8_bit_weights, is_quantized, quantized_scales
from ldp_export.building.cache import files_of
from ldp_export.building.plan import BuildPlan
from ldp_export.building.stages import ENGINE, RANGES_OF_PROMPT, toolchain
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
        noise=plan.options.noise,
        fused_attention=plan.fused_attention,
        precision=plan.options.precision,
        quantized=() if quantized is None else (quantized,),
        weight_precision="int8" if has_8_bit_weights(builder, "blocks") else None,
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
        if stage.startswith(RANGES_OF_PROMPT):
            continue  # they ship merged
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

    Files are linked if the file system can, so that stages and versions share their disk space. Files and folders
    survive a power cut once this returns.
    """
    place = root / VERSIONS / manifest.version
    if _is_whole(place, manifest):
        sync_tree(place)
        return place  # content-addressed: the same files are already there
    scratch = scratch_path(root / VERSIONS)
    try:
        scratch.mkdir()
        write_durably(scratch / MANIFEST, manifest.model_dump_json(indent=1).encode())
        mode = stat.S_IMODE((scratch / MANIFEST).stat().st_mode)  # that of a new file here, by umask and folder
        for name, source in files.items():
            target = scratch / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(source, target, mode)
        sync_tree(scratch)
        put_in_place(scratch, place)
        sync(root / VERSIONS)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return place


def _is_whole(folder: Path, manifest: Manifest) -> bool:
    """True if `folder` holds the version with all its files as they were built."""
    try:
        there = read_manifest(folder)
        check_manifest(there, folder)
        check_files(folder, there.files, "full")
    except LdpError:
        return False
    return there.digest == manifest.digest


def _link(source: Path, target: Path, mode: int) -> None:
    """Gives a file a second name, or copies it where the disk has no such links; libraries write with other modes."""
    try:
        if stat.S_IMODE(source.stat().st_mode) != mode:
            source.chmod(mode)
        os.link(source, target)
    except OSError as error:
        if is_full(error):
            raise
        shutil.copyfile(source, target)
        target.chmod(mode)


def make_current(root: Path, manifest: Manifest) -> None:
    """Points CURRENT at a version, atomically; keeps the version that served before it, and removes older ones.

    The version before stays after a rebuild of the same version, too: PREVIOUS names it.
    """
    before, earlier = (_pointed_at(root, name) for name in (CURRENT, PREVIOUS))
    kept = before if before not in (None, manifest.version) else earlier
    if kept in (None, manifest.version):
        kept = _newest_other(root, manifest)
    if kept is not None and kept != earlier:
        write_durably(root / PREVIOUS, f"{kept}\n".encode())
    write_durably(root / CURRENT, f"{manifest.version}\n".encode())
    for folder in (root / VERSIONS).iterdir():
        if folder.name not in (manifest.version, kept):
            _remove_version(root, folder)


def _pointed_at(root: Path, pointer: str) -> str | None:
    """Name of the version that a pointer names; None if there is no such pointer or version."""
    try:
        name = read_small(root / pointer, 4096).decode(errors="replace").strip()
    except (OSError, ValueError):
        return None
    return name if VERSION_NAME.fullmatch(name) and (root / VERSIONS / name).is_dir() else None


def _newest_other(root: Path, manifest: Manifest) -> str | None:
    """Newest of the other versions that was not rejected, for bundles in which PREVIOUS does not tell."""
    others = [
        folder
        for folder in (root / VERSIONS).iterdir()
        if folder.name != manifest.version and (there := own_version(folder)) and read_state(root, there) != "rejected"
    ]
    return max(others, key=lambda folder: folder.stat().st_mtime).name if others else None


def own_version(folder: Path) -> Manifest | None:
    """Manifest of a version that a build put there; None for anything else, which no build deletes."""
    if folder.is_symlink() or not VERSION_NAME.fullmatch(folder.name):
        return None
    try:
        manifest = read_manifest(folder)
    except LdpError:
        return None
    return manifest if manifest.version == folder.name else None


def _remove_version(root: Path, folder: Path) -> None:
    """Deletes the files that a version lists, and its report. What else lies in its folder stays, as all others do."""
    manifest = own_version(folder)
    if manifest is None:
        return
    names = [name for name in manifest.files if stays_inside(name)]
    # The manifest goes last: until then, a later build recognises the rest.
    remove_files(folder, [*names, MANIFEST])
    report_path(root, manifest).unlink(missing_ok=True)


def write_report(root: Path, manifest: Manifest, report: dict) -> Path:
    """Saves the report of a verification beside the version."""
    path = report_path(root, manifest)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, json_text(report, indent=1).encode())
    return path

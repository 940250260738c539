"""From the stages of a build to the sealed manifest of a version."""

from __future__ import annotations

from pathlib import Path

from ldp_runtime.bundle import SCHEMA_VERSION, FileEntry, GraphEntry, Limits, Manifest

from ldp_export.builders.base import is_quantized, late_entry
from ldp_export.graphs.signature import LATE, tensor_entries
from ldp_export.plan import BuildPlan
from ldp_export.recipes.base import graph_blocks, graph_kind
from ldp_export.stages import files_of
from ldp_export.work import ENGINE, toolchain


def seal(plan: BuildPlan, hashes: dict[str, str], folders: dict[str, Path]) -> tuple[Manifest, dict[str, Path]]:
    """The manifest, and where each of the version's files lies now.

    Args:
        hashes: of the sources. folders: of each stage.
    """
    builder, model = plan.options.builder, plan.recipe.entry
    places, files = _files(folders)
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
        precision=plan.options.precision,
        late=late_entry(builder),
        graphs={name: _graph(plan, name) for graph in plan.graph_names for name in plan.engine_names(graph)},
        files=files,
        sources=hashes,
        toolchain=toolchain(),
        has_text_encoder=plan.sources.text_encoder is not None,
    ).sealed()
    return manifest, places


def _files(folders: dict[str, Path]) -> tuple[dict[str, Path], dict[str, FileEntry]]:
    """Where the version's files lie, and their sizes and hashes, as the stages noted them."""
    places: dict[str, Path] = {}
    entries: dict[str, FileEntry] = {}
    for stage, folder in folders.items():
        if stage + ENGINE in folders:
            continue  # the engine is what ships, not the graph it was made of
        prefix = "" if stage == "constants" else stage.removesuffix(ENGINE) + "/"
        for inside, entry in files_of(folder).items():
            places[prefix + inside] = folder / inside
            entries[prefix + inside] = entry
    return places, dict(sorted(entries.items()))


def _graph(plan: BuildPlan, name: str) -> GraphEntry:
    builder, signature = plan.options.builder, plan.signature(name.removeprefix(LATE))
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
    )

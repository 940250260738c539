"""Bundles as an earlier schema of the manifest describes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ldp_runtime.bundle.files import CURRENT, MANIFEST, Bundle, open_bundle
from ldp_runtime.bundle.manifest import content_digest

#: Fields that schema 3 does not have, and the digest.
NEW_FIELDS = ("noise", "fused_attention", "quantized", "weight_precision", "digest")


def schema_3_of(content: dict[str, Any]) -> dict[str, Any]:
    """Content of a manifest of today, in schema 3 and sealed."""
    older = {key: value for key, value in content.items() if key not in NEW_FIELDS}
    sets = content["quantized"]
    older["late"] = {name: sets[0][name] for name in ("precision", "share")} if sets else None
    older["graphs"] = dict(_graph(name, dict(graph)) for name, graph in content["graphs"].items())
    older["sources"] = {part: source["sha256"] for part, source in content["sources"].items()}
    older["defaults"] = {name: value for name, value in content["defaults"].items() if name != "policy"}
    older["schema_version"] = 3
    return older | {"digest": content_digest(older)}


def _graph(name: str, graph: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    scales = graph.pop("scales")
    if not scales:
        return name, graph
    return f"late_{name.removeprefix(f'{scales}_')}", graph | {"kind": "late_blocks"}


def age(bundle: Bundle) -> Bundle:
    """Rewrites a bundle, which a test may change, as one that was built with schema 3; its report goes with it."""
    assert bundle.root is not None
    older = schema_3_of(json.loads(bundle.path(MANIFEST).read_text()))
    bundle.path(MANIFEST).write_text(json.dumps(older, indent=1))
    version = older["digest"][:16]
    bundle.folder.rename(bundle.folder.parent / version)
    (bundle.root / CURRENT).write_text(version)
    report = Path(bundle.root / "reports" / f"{bundle.manifest.version}.json")
    if report.is_file():
        content = json.loads(report.read_text()) | {"digest": older["digest"]}
        report.with_name(f"{version}.json").write_text(json.dumps(content))
        report.unlink()
    return open_bundle(bundle.root)

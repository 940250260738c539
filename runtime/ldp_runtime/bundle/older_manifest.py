"""Manifests of schema 3, read as schema 4.

Their digest and their version's folder stay what they were, so that reports and saved policies still belong to them.
`ldp-export upgrade` writes them anew.
"""

from __future__ import annotations

from typing import Any

#: Schemas that are read besides the one that is written.
OLDER_SCHEMAS = (3,)

#: Name of the only set of quantized scales that schema 3 knows.
LAST_SCALES = "last"


def from_schema_3(raw: dict[str, Any]) -> dict[str, Any]:
    """Fields of a manifest of schema 3 under their names in schema 4; the digest and the schema's number stay.

    Raises:
        KeyError, TypeError, AttributeError: the fields are not those of schema 3.
    """
    fields = dict(raw)
    late = fields.pop("late", None)
    fields["quantized"] = [] if late is None else [{**late, "name": LAST_SCALES}]
    fields["graphs"] = dict(_graph(name, graph) for name, graph in raw["graphs"].items())
    fields["sources"] = {part: {"sha256": digest} for part, digest in raw["sources"].items()}
    return fields


def _graph(name: str, graph: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if graph["kind"] != "late_blocks":
        return name, graph
    return f"{LAST_SCALES}_{name.removeprefix('late_')}", {**graph, "kind": "blocks", "scales": LAST_SCALES}

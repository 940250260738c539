"""Results as they are read: those of older versions under the policy names of today."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ldp_export.bench.older_results import OLDER_SCHEMA, relabelled, renamed

#: Results that say so hold `ld` as it is now: LHEP's energy.
GRAMMAR = 2
#: Notes on what the older `ld` was.
_NOTES = {
    "recommended": "the fast setting",
    "recommended, with a fitted fill": "the fast setting, with a fitted fill",
}


def read_result(path: Path) -> dict[str, Any]:
    """A result, with `ld` of an older one as `ld-fast`."""
    result = relabelled(json.loads(path.read_text(encoding="utf-8")))
    schema = result.get("schema")
    is_older = schema == OLDER_SCHEMA if schema is not None else result.get("grammar", 1) < GRAMMAR
    if not is_older:
        return result
    result = renamed(result)
    if "groups" in result:
        groups = result["groups"].items()
        result["groups"] = {name: {p: _NOTES.get(n, n) for p, n in notes.items()} for name, notes in groups}
    return result


def between(text: str, name: str, content: str) -> str:
    """Text of a page with a content between the markers of a name."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the page has no markers for {name!r}")
    return pattern.sub(lambda match: match[1] + content + "\n" + match[2], text)

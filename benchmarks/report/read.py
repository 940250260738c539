"""Results as they are read: those of older versions under the policy names of today."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

#: Results that say so hold `ld` as it is now: LHEP's energy.
GRAMMAR = 2
_OLDER_SCHEMA = "ldp-export/bench/2"
#: A policy's text, or a candidate's name that ends with one.
_LD = re.compile(r"^(.* \+ )?ld(:.*)?$")


def read_result(path: Path) -> dict[str, Any]:
    """A result, with `ld` of an older one as `ld-fast`: the same setting under its name of today."""
    result = json.loads(path.read_text(encoding="utf-8"))
    schema = result.get("schema")
    is_older = schema == _OLDER_SCHEMA if schema is not None else result.get("grammar", 1) < GRAMMAR
    return _renamed(result) if is_older else result


def _renamed(part: Any) -> Any:
    if isinstance(part, dict):
        return {_renamed(key): _renamed(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_renamed(value) for value in part]
    return _LD.sub(r"\1ld-fast\2", part) if isinstance(part, str) else part

"""Results of earlier versions, under the policy names of today."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

#: The format before this one; it differs in what `ld` means, and does not write policies out.
OLDER_SCHEMA = "ldp-export/bench/2"
#: Label of the engines whose last scales are quantized, as results before schema 4 of the manifest name them.
_OLDER_LABEL, _LABEL = "late scales", "last scales"
#: A policy's text, or a candidate's name that ends with one.
_LD = re.compile(r"^(.* \+ )?ld(:.*)?$")


def renamed(part: Any) -> Any:
    """The part of a result, with the older `ld` as `ld-fast`: the same setting under its name of today."""
    return _mapped(part, lambda text: _LD.sub(r"\1ld-fast\2", text))


def relabelled(part: Any) -> Any:
    """The part of a result, with engines under the label that `bench` gives them today."""
    return _mapped(part, lambda text: text.replace(_OLDER_LABEL, _LABEL))


def of_today(result: dict[str, Any]) -> dict[str, Any]:
    """The result of `bench`, under the names of today."""
    return relabelled(renamed(result) if result["schema"] == OLDER_SCHEMA else result)


def _mapped(part: Any, change: Callable[[str], str]) -> Any:
    if isinstance(part, dict):
        return {_mapped(key, change): _mapped(value, change) for key, value in part.items()}
    if isinstance(part, list):
        return [_mapped(value, change) for value in part]
    return change(part) if isinstance(part, str) else part

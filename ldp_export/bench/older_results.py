"""Results of earlier versions, under the policy names of today."""

from __future__ import annotations

import re
from typing import Any

#: The format before this one; it differs in what `ld` means, and does not write policies out.
OLDER_SCHEMA = "ldp-export/bench/2"
#: A policy's text, or a candidate's name that ends with one.
_LD = re.compile(r"^(.* \+ )?ld(:.*)?$")


def renamed(part: Any) -> Any:
    """The part of a result, with the older `ld` as `ld-fast`: the same setting under its name of today."""
    if isinstance(part, dict):
        return {renamed(key): renamed(value) for key, value in part.items()}
    if isinstance(part, list):
        return [renamed(value) for value in part]
    return _LD.sub(r"\1ld-fast\2", part) if isinstance(part, str) else part

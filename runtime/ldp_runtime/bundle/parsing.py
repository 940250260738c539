"""What a parser found wrong, in words for one line."""

from __future__ import annotations

from pydantic import ValidationError

_MOST = 3


def complaint(error: Exception) -> str:
    """The error's text; pydantic's own takes three lines a field and names its web site."""
    if not isinstance(error, ValidationError):
        return str(error)
    found = [f"{'.'.join(map(str, each['loc'])) or 'the whole'}: {each['msg']}" for each in error.errors()]
    more = f" (and {len(found) - _MOST} more)" if len(found) > _MOST else ""
    return "; ".join(found[:_MOST]) + more

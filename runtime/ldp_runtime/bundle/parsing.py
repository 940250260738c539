"""Errors of a parser as text for one line."""

from __future__ import annotations

from pydantic import ValidationError

_MOST = 3


def complaint(error: Exception) -> str:
    """Text of an error on one line; pydantic's own takes three lines per field and names its web site."""
    if isinstance(error, KeyError):
        return f"the field {error} is missing"
    if not isinstance(error, ValidationError):
        return str(error)
    texts = [f"{'.'.join(map(str, item['loc'])) or 'the whole'}: {item['msg']}" for item in error.errors()]
    more = f" (and {len(texts) - _MOST} more)" if len(texts) > _MOST else ""
    return "; ".join(texts[:_MOST]) + more

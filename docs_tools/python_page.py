"""Page of the Python interface: the names that `ldp_runtime` exports, from their docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import ldp_runtime

_INTRODUCTION = """# Python

Written by `make docs` from docstrings; edit `runtime/ldp_runtime/`, not this page. These names are the public
interface: `from ldp_runtime import Pipeline`. All else may change. Errors are in `ldp_runtime.errors`."""
_HEADING = re.compile(r"(Args|Returns|Raises|Attributes|Yields|Examples?):\s*$")
_ENTRY = re.compile(r"(\S[^:]*):\s+(.*)")
_TITLES = {"Args": "Arguments"}


def text() -> str:
    """The page as Markdown, names in alphabetical order."""
    parts = [_INTRODUCTION]
    for name in sorted(ldp_runtime.__all__, key=str.lower):
        value = getattr(ldp_runtime, name)
        parts += [f"## {name}", _signature(name, value), *_described(value)]
        if inspect.isclass(value):
            for member, function in _members(value):
                parts += [f"### {name}.{member}", _signature(member, function), *_described(function)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that a class itself describes, in the order of its source."""
    for name, value in vars(cls).items():
        plain = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        is_shown = name == "__call__" or not name.startswith("_")
        if is_shown and inspect.isfunction(plain) and plain.__doc__:
            yield name, value if isinstance(value, property) else plain


def _signature(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"    {name}"
    if inspect.isclass(value) and "__init__" not in vars(value):
        return ""
    signature = inspect.signature(value)
    parameters = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    if any(p.name.startswith("_") for p in parameters):
        return ""  # made by the library alone
    result = _annotation(signature.return_annotation)
    tail = f" -> {result}" if result and not inspect.isclass(value) else ""
    words = [*_listed(parameters)]
    line = f"{name}({', '.join(words)}){tail}"
    if len(line) > 110:
        line = "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){tail}"])
    return f"```python\n{line}\n```"


def _listed(parameters: list[inspect.Parameter]) -> Iterator[str]:
    """Parameters as a call's signature writes them, with the star before those that take names alone."""
    starred = False
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not starred:
            starred = True
            yield "*"
        kind, prefix = _annotation(p.annotation), {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        word = prefix + p.name + (f": {kind}" if kind else "")
        default = "" if p.default is p.empty else f" = {p.default!r}" if kind else f"={p.default!r}"
        yield word + default


def _annotation(annotation: Any) -> str:
    """Annotation in words; empty without one."""
    if annotation is inspect.Parameter.empty:
        return ""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _described(value: Any) -> list[str]:
    """A docstring as Markdown: paragraphs, and a list for each of its sections."""
    paragraphs = re.split(r"\n\s*\n", inspect.getdoc(value) or "")
    return [_section(paragraph) for paragraph in paragraphs if paragraph.strip()]


def _section(paragraph: str) -> str:
    lines = paragraph.splitlines()
    heading = _HEADING.match(lines[0])
    if heading is None:
        if all(line.startswith("    ") for line in lines):
            return paragraph
        return " ".join(paragraph.split()).replace("<", "&lt;")
    title = _TITLES.get(heading[1], heading[1])
    return f"**{title}**\n\n" + "\n".join(_items(inspect.cleandoc("\n".join(["", *lines[1:]])).splitlines()))


def _items(lines: list[str]) -> Iterator[str]:
    """Entries of a section; indented lines continue the one before."""
    entries: list[str] = []
    for line in lines:
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    for entry in entries:
        named = _ENTRY.match(entry)
        yield f"- `{named[1]}`: {named[2]}" if named else f"- {entry}"

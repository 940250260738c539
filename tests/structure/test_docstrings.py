"""Docstrings are short and begin with what they speak of: a noun or a verb."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.tree import ROOT, project_modules

#: Openings that leave the reader to guess the noun: "Of what is made of a graph" instead of "Engines of a graph".
BAD_OPENINGS = ("Of", "What", "As", "Whether", "Where", "How", "That", "When")
MOST_WORDS = 25
_ENTRY = re.compile(r"\s*(?:[-*]|[\w`*\[\]., ]+:)\s")
_HEADING = re.compile(r"(?:Args|Returns|Raises|Attributes|Yields|Examples?):\s*$")


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Name of each definition that has a docstring, and the docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", "module"), text


def sentences(text: str) -> Iterator[str]:
    """Sentences of a docstring; an entry of a list, such as an argument, begins one; indented figures are none."""
    for paragraph in re.split(r"\n\s*\n", text):
        parts: list[str] = []
        for line in paragraph.splitlines():
            if _HEADING.match(line):
                continue
            if not parts or (line.startswith(" ") and _ENTRY.match(line)):
                parts.append(line.strip())
            else:
                parts[-1] += " " + line.strip()
        if all(line.startswith("    ") and not _ENTRY.match(line) for line in paragraph.splitlines()):
            continue
        for part in parts:
            yield from re.split(r"(?<=[.!?])\s+", part)


@pytest.mark.parametrize("path", project_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_docstrings_begin_with_a_noun_or_a_verb_and_are_short(path: Path) -> None:
    texts = list(docstrings(path))
    openings = [f"{name}: {text[:60]}" for name, text in texts if text.split()[0].rstrip(",:;") in BAD_OPENINGS]
    assert not openings, f"begin with a noun or a verb, not with {', '.join(BAD_OPENINGS)}"
    long = [
        f"{name}: {len(sentence.split())} words: {sentence}"
        for name, text in texts
        for sentence in sentences(text)
        if len(sentence.split()) > MOST_WORDS
    ]
    assert not long, f"at most {MOST_WORDS} words a sentence"


def test_the_rule_finds_what_it_forbids() -> None:
    listed = "Builds.\n\nArgs:\n    a: one two.\n    b: three\n        four.\n\n    x = 1\n"
    assert list(sentences(listed)) == ["Builds.", "a: one two.", "b: three four."]
    assert max(len(s.split()) for s in sentences("word " * 26)) == 26

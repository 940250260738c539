"""Pages of prose: what they link to, show as code and say in words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from helpers.tree import ROOT

DOCS = ROOT / "docs"
#: Pages that a script writes as a whole.
GENERATED = (DOCS / "reference", DOCS / "results" / "measured")
#: Pages that a reader meets outside of `docs`.
TOP = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"))


@dataclass(frozen=True)
class Code:
    """A block of code, and the language that it names; indented blocks name none."""

    language: str
    text: str


def pages() -> list[Path]:
    """Every page of `docs`, and those beside it."""
    return [*TOP, *sorted(DOCS.rglob("*.md"))]


def written_pages() -> list[Path]:
    """Pages of `docs` that people write."""
    return [page for page in sorted(DOCS.rglob("*.md")) if not any(page.is_relative_to(f) for f in GENERATED)]


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    parser = MarkdownIt("commonmark").enable("table")
    return tuple(parser.parse(page.read_text(encoding="utf-8")))


def code_blocks(page: Path) -> list[Code]:
    kinds = ("fence", "code_block")
    return [Code(token.info.strip(), token.content) for token in tokens(page) if token.type in kinds]


def inline_code(page: Path) -> list[str]:
    """Words in backticks, tables included."""
    return [child.content for child in _inline(tokens(page)) if child.type == "code_inline"]


def links(page: Path) -> list[str]:
    """Targets of links and pictures."""
    found = (child.attrs.get("href") or child.attrs.get("src") for child in _inline(tokens(page)))
    return [str(target) for target in found if target]


def anchors(page: Path) -> set[str]:
    """Names by which headings can be linked to, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for opening, content in zip(tokens(page), tokens(page)[1:], strict=False):
        if opening.type == "heading_open":
            words = "".join(child.content for child in content.children or ())
            name = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            names.add(name if name not in found else f"{name}-{found[name]}")
            found[name] = found.get(name, 0) + 1
    return names


def prose(page: Path) -> str:
    """Words of paragraphs, lists and headings: no code, no tables, no pictures."""
    depth, words = 0, list[str]()
    for token in tokens(page):
        depth += {"table_open": 1, "table_close": -1}.get(token.type, 0)
        if token.type == "inline" and not depth:
            words += [child.content for child in _inline((token,)) if child.type in ("text", "code_inline")]
    return " ".join(words)


def _inline(found: tuple[Token, ...]) -> Iterator[Token]:
    for token in found:
        yield from token.children or ()

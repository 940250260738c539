"""Pages are short, in the navigation, linked to what is there, and name modules that exist."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from helpers.markdown import DOCS, GENERATED, anchors, links, pages, prose, tokens, written_pages
from helpers.tree import ROOT, modules

#: Most words of prose of a page.
MOST_WORDS = 600
#: Most lines and words of the README, code and tables included.
README_LINES, README_WORDS = 150, 900


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", written_pages(), ids=name)
def test_a_page_is_short(page: Path) -> None:
    assert len(prose(page).split()) <= MOST_WORDS


def test_the_readme_is_read_in_a_minute() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= README_LINES
    assert len(text.split()) <= README_WORDS


@pytest.mark.parametrize("page", pages(), ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in links(page) if not link.startswith("https://") and not leads_somewhere(page, link)]
    assert not broken


def leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    # The site holds `docs` alone: a page there that links out of it would be a dead link.
    is_inside = target.is_relative_to(DOCS) or not page.is_relative_to(DOCS)
    return target.is_file() and is_inside and (not anchor or anchor in anchors(target))


def test_links_that_lead_nowhere_are_found() -> None:
    page = DOCS / "results" / "method.md"
    assert leads_somewhere(page, "ablation.md#which-policy-loses-nothing")
    assert not leads_somewhere(page, "ablation.md#no-such-heading")
    assert not leads_somewhere(page, "no-such-page.md")
    assert not leads_somewhere(page, "../../README.md")


def entries(node: object) -> list[str]:
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return [entry for child in children for entry in entries(child)]


def test_the_navigation_shows_every_page_once() -> None:
    """Raw tables are reached through their index."""
    shown = entries(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    raw = {page for page in DOCS.rglob("*.md") if page.parent == GENERATED[1] and page.name != "index.md"}
    assert sorted(shown) == sorted(str(page.relative_to(DOCS)) for page in {*DOCS.rglob("*.md")} - raw)


@pytest.mark.parametrize(("section", "count"), [("A request in eight steps", 8), ("A build in six steps", 6)])
def test_steps_of_a_request_and_of_a_build_name_their_modules(section: str, count: int) -> None:
    steps = numbered(DOCS / "concepts.md", section)
    assert len(steps) == count
    for step in steps:
        named = re.findall(r"`([\w.]+)`", step)
        assert named, step
        assert all(module in modules() for module in named), step


def numbered(page: Path, section: str) -> list[str]:
    """Entries of the numbered list under a heading."""
    found, here, inside = list[str](), False, False
    for token, following in zip(tokens(page), tokens(page)[1:], strict=False):
        if token.type == "heading_open":
            here = following.content == section
        inside = {"ordered_list_open": here, "ordered_list_close": False}.get(token.type, inside)
        if inside and token.type == "inline":
            found.append(token.content)
    return found

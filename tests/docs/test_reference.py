"""Reference pages are what the code says of itself; `make docs` mends them."""

from __future__ import annotations

import click
import ldp_runtime
import pytest
from helpers.markdown import DOCS, anchors

from docs_tools.__main__ import pages
from ldp_export.cli import main


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize("page", ["cli.md", "python.md"])
def test_committed_page_is_what_the_code_says(written: dict[str, str], page: str) -> None:
    assert (DOCS / "reference" / page).read_text(encoding="utf-8") == written[page], "run: make docs"


def test_every_verb_and_every_name_has_a_part() -> None:
    assert set(main.list_commands(None)) <= anchors(DOCS / "reference" / "cli.md")  # pyright: ignore[reportArgumentType]
    assert {name.lower() for name in ldp_runtime.__all__} <= anchors(DOCS / "reference" / "python.md")


def test_every_option_is_in_its_verbs_part(written: dict[str, str]) -> None:
    parts = dict(part.split("\n", 1) for part in written["cli.md"].split("\n## ")[1:])
    for verb in main.list_commands(None):  # pyright: ignore[reportArgumentType]
        command = main.get_command(None, verb)  # pyright: ignore[reportArgumentType]
        steps = [
            command.get_command(None, step)
            for step in (command.list_commands(None) if isinstance(command, click.Group) else ())
        ]
        for one in [command, *steps]:
            shown = [p for p in one.params if p.param_type_name == "option" and not getattr(p, "hidden", False)]
            assert shown or verb in ("models", "evaluate")
            for option in shown:
                assert all(f"{word}" in parts[verb] for word in option.opts), (verb, option.opts)

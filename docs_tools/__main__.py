"""Writes the reference pages: `python -m docs_tools`."""

from __future__ import annotations

from pathlib import Path

from docs_tools import cli_page, python_page

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


def pages() -> dict[str, str]:
    """Text of each generated page, by file name."""
    return {"cli.md": cli_page.text(), "python.md": python_page.text()}


def main() -> None:
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
        print(REFERENCE / name)


if __name__ == "__main__":
    main()

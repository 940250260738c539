"""Options under the names that they had: they still work, and say so on stderr."""

from __future__ import annotations

import tomllib

import pytest
from click.testing import CliRunner

from ldp_export.cli import main


@pytest.mark.parametrize(
    ("old", "key", "value"),
    [
        (["--pn", "0.25M"], "size", "0.25M"),
        (["--pn=0.25M"], "size", "0.25M"),
        (["--late-precision", "int8"], "quantize", "int8"),
        (["--late-share", "0.5"], "quantize-share", 0.5),
        (["--kv-form", "in-place"], "kv-cache", "static"),
        (["--kv-form=concat"], "kv-cache", "dynamic"),
    ],
)
def test_old_names(old: list[str], key: str, value: object) -> None:
    made = CliRunner().invoke(main, ["build", *old, "--print-config"])
    assert made.exit_code == 0, made.output
    assert tomllib.loads(made.stdout)["build"][key] == value
    assert f"{old[0].partition('=')[0]} is an old name" in made.stderr
    assert f"--{key} {value}" in made.stderr


def test_new_names_warn_of_nothing() -> None:
    made = CliRunner().invoke(main, ["build", "--size", "0.25M", "--quantize", "int8", "--print-config"])
    assert not made.stderr


def test_further_bundles_are_arguments() -> None:
    made = CliRunner().invoke(main, ["bench", "--also", "b", "--repeats", "0", "a"])
    assert "--also is an old name" in made.stderr
    assert "repeats must be at least 1" in made.output


def test_what_follows_two_dashes_is_no_option() -> None:
    made = CliRunner().invoke(main, ["generate", "nowhere", "--", "--pn"])
    assert "old name" not in made.output
    assert "no bundle" in made.output

"""Settings from the command line, the environment, a file and defaults, in this order."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ldp_runtime.errors import ConfigError

from ldp_export.cli import main


def shown(*arguments: str, **environment: str) -> dict[str, object]:
    """Settings that a command line prints."""
    made = CliRunner().invoke(main, [*arguments, "--print-config"], env=environment)
    assert made.exit_code == 0, made.output
    return tomllib.loads(made.output)[arguments[0]]


def run(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env=environment)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(
        '[bench]\nrepeats = 3\npolicy = ["ld", "ld-fast"]\nno_eager = true\nscope = "image"\n'
        "[generate]\nseed = 5\ntop-p = 0.5\n"
    )
    return path


def test_the_command_line_goes_before_the_environment_before_the_file(file: Path) -> None:
    assert shown("bench")["repeats"] == 10
    of_file = shown("bench", "--config", str(file))
    assert of_file["repeats"] == 3
    assert (of_file["policy"], of_file["no-eager"], of_file["scope"]) == (["ld", "ld-fast"], True, "image")
    assert shown("bench", "--config", str(file), LDP_BENCH_REPEATS="4")["repeats"] == 4
    assert shown("bench", "--repeats", "5", LDP_BENCH_REPEATS="4", LDP_CONFIG=str(file))["repeats"] == 5
    assert shown("bench", LDP_CONFIG=str(file))["repeats"] == 3
    assert shown("generate", LDP_CONFIG=str(file))["seed"] == 5
    assert shown("generate", LDP_BENCH_SEED="7").get("seed") is None


def test_printed_settings_can_be_read_again(tmp_path: Path, file: Path) -> None:
    first = CliRunner().invoke(main, ["build", "--output", 'a "b" \\ c', "--size", "1M", "--force", "--print-config"])
    again = tmp_path / "again.toml"
    again.write_text(first.output)
    second = CliRunner().invoke(main, ["build", "--config", str(again), "--print-config"])
    assert tomllib.loads(second.output) == tomllib.loads(first.output)
    assert 'size = "1M"  # from the file' in second.output


@pytest.mark.parametrize("verb", ["build", "bench", "generate", "calibrate"])
def test_verbs_with_many_options_have_settings(verb: str) -> None:
    assert shown(verb)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[bench]\nrepeat = 3", "bench has no setting 'repeat'"),
        ("[bench", "cannot read the settings"),
        ("bench = 3", "bench is no table"),
    ],
)
def test_files_that_make_no_sense(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(content)
    made = run("bench", "bundle", "--config", str(path))
    assert made.exit_code == ConfigError.exit_code
    assert says in made.output
    assert "hint:" in made.output


def test_values_of_a_file_are_checked_as_options_are(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('[bench]\nrepeats = "many"\n')
    made = run("bench", "bundle", "--config", str(path))
    assert made.exit_code == 2
    assert "--repeats" in made.output

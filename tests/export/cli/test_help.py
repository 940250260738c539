"""Help: options in groups, examples that fit a terminal of 80 columns."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from ldp_export.cli import _VERBS, main


def help_of(*verb: str) -> str:
    return CliRunner().invoke(main, [*verb, "--help"], terminal_width=80).output


STEPS = [("evaluate", step) for step in ("generate", "score", "compare", "folders")]


@pytest.mark.parametrize("verb", [(), *((verb,) for verb in _VERBS), *STEPS])
def test_examples_fit_80_columns(verb: tuple[str, ...]) -> None:
    text = help_of(*verb)
    examples = text[text.index("Examples:") :].splitlines()
    assert len(examples) > 1
    assert not [line for line in examples if len(line) > 80]


@pytest.mark.parametrize("verb", [*((verb,) for verb in _VERBS), *STEPS])
def test_both_names_of_help_also_where_a_command_runs_by_itself(verb: tuple[str, ...]) -> None:
    """The first one to ask for help decides its names for the whole process, in which the reference is made."""
    command: click.Command | None = main
    for name in verb:
        assert isinstance(command, click.Group)
        command = command.get_command(click.Context(command), name)
    assert command is not None
    context = command.make_context(verb[-1], [], resilient_parsing=True)
    assert context.help_option_names == ["-h", "--help"]


@pytest.mark.parametrize(
    ("verb", "titles"),
    [
        ("build", ["Options:", "Engines:", "TensorRT:", "Checkpoint files:", "Random weights:"]),
        ("bench", ["Options:", "Pictures:", "Measurement:", "Eager PyTorch:", "Result:"]),
        ("generate", ["Options:", "Picture:", "Result:"]),
    ],
)
def test_options_are_shown_in_groups(verb: str, titles: list[str]) -> None:
    lines = help_of(verb).splitlines()
    assert [line for line in lines if line in titles] == titles
    engines = lines.index("Engines:") if verb == "build" else 0
    assert verb != "build" or any("--quantize " in line for line in lines[engines : lines.index("TensorRT:")])


@pytest.mark.parametrize("old", ["--pn", "--late-precision", "--late-share", "--kv-form", "--also", "--compare"])
def test_old_names_are_hidden(old: str) -> None:
    assert not [verb for verb in _VERBS if old in help_of(verb).split()]

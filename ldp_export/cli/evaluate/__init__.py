"""Verb `ldp-export evaluate`: one module a step, imported when it is asked for."""

from __future__ import annotations

import click

from ldp_export.cli.arguments.command import Verbs


@click.group(
    "evaluate",
    cls=Verbs,
    package=__name__,
    verbs=("fetch", "generate", "score", "compare", "summary", "export", "folders", "fid", "selftest"),
    kind="step",
    subcommand_metavar="STEP ...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  ldp-export evaluate generate bundles/shapes --benchmark shapes \\
      --policy ld --policy ld-fast --output runs/shapes
  ldp-export evaluate score runs/shapes
  ldp-export evaluate compare runs/shapes
""",
)
def command() -> None:
    """Judge policies by a benchmark: fetch prompts, draw pictures, score them, compare in pairs by prompt.

    Each step resumes where it was stopped, and runs alone. docs/guide/evaluate.md tells more.
    """

"""Times of the commands that a newcomer runs first, of two installations side by side.

    python -m benchmarks.study.first_minute OLD/.venv/bin/ldp-export NEW/.venv/bin/ldp-export --output FILE.json

Whole processes are timed, in turns (old, new, old, ...), each from a warm page cache: a first round of both is left
out. Builds go to a new folder every time. Medians and every time are written.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from ldp_export.bench.hardware import hardware, software

#: Commands by name; {bundle} is a bundle that each installation has built, {new} a folder that does not exist.
COMMANDS = {
    "models": ["models"],
    "doctor": ["doctor"],
    "inspect": ["inspect", "{bundle}"],
    "dry run": ["build", "--dry-run", "--output", "{new}"],
    "build": ["build", "--output", "{new}"],
}


def seconds(program: Path, command: list[str]) -> dict[str, float]:
    """Elapsed and processor seconds of a process and its children.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    before, started = os.times(), time.perf_counter()
    subprocess.run([program, *command], check=True, capture_output=True, cwd=program.parents[2])
    elapsed, after = time.perf_counter() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {"elapsed_s": round(elapsed, 2), "cpu_s": round(cpu, 2)}


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.argument("old", type=click.Path(path_type=Path, exists=True))
@click.argument("new", type=click.Path(path_type=Path, exists=True))
@click.option("--rounds", default=5, help="Of the listings.", show_default=True)
@click.option("--builds", default=3, help="Rounds of the build.", show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(old: Path, new: Path, rounds: int, builds: int, output: Path) -> None:
    programs = {"old": old.absolute(), "new": new.absolute()}
    times: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for who, program in programs.items():
            seconds(program, ["build", "--output", str(folder / who)])
        for label, command in COMMANDS.items():
            times[label] = {who: [] for who in programs}
            warm = label == "build"  # by the build of the bundle above
            for turn in range(1 if warm else 0, (builds if warm else rounds) + 1):
                for who, program in programs.items():
                    places = {"{bundle}": str(folder / who), "{new}": str(folder / f"{who}-{label}-{turn}")}
                    spent = seconds(program, [places.get(word, word) for word in command])
                    times[label][who] += [spent] if turn else []
                    click.echo(f"{label}, {who}: {spent}")
    medians: dict[str, dict[str, Any]] = {
        label: {who: {key: statistics.median(t[key] for t in each) for key in each[0]} for who, each in both.items()}
        for label, both in times.items()
    }
    result = {"hardware": hardware(), "software": software(), "medians": medians, "times": times}
    output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

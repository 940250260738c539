"""Where results and pages lie; and paths that scripts are given, checked before minutes of work."""

from __future__ import annotations

import argparse
from pathlib import Path

BENCHMARKS = Path(__file__).parent
RESULTS, PROMPTS = BENCHMARKS / "results", BENCHMARKS / "prompts.txt"
#: Pages on results: written by hand, with tables between markers; and those written as a whole from raw files.
REPORTS = BENCHMARKS.parent / "docs" / "results"
MEASURED = REPORTS / "measured"


def result_file(text: str) -> Path:
    """A file that can be written: its folder is there."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder")
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.absolute().parent}")
    return path


def new_folder(text: str) -> Path:
    """A folder that is not there yet: scripts delete it when they end."""
    path = Path(text)
    if path.exists():
        raise argparse.ArgumentTypeError(f"{path} is there already, and would be deleted afterwards")
    return path

"""The LD-Pruning paper's table as a recipe: commands, their cost, and what was measured beside what the paper says.

    python -m benchmarks.paper_table --model infinity-8b                     # commands, hours and disk; runs nothing
    python -m benchmarks.paper_table --model infinity-8b --run BUNDLE --weights DIR --folder RUNS
    python -m benchmarks.paper_table --model infinity-8b --collect RUNS      # figures of the runs, into results/
    python -m benchmarks.paper_table --page                                  # pages; empty where nothing was measured

`--run` fetches prompts, draws, scores, exports DPG's layout, and collects; it stops and goes on like its commands.
DPG's answers come from the official script on the exported folders, with --res-path FOLDER/dpg-layout/NAME.txt by the
names of those folders, which writes NAME_detail.txt; then run it again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paths import REPORTS, RESULTS
from benchmarks.report import scorers
from benchmarks.report.read import between

INFINITY = ("infinity-2b", "infinity-8b")
HART = "hart-0.7b"
MODELS = (*INFINITY, HART)
#: Benchmarks, their prompts, pictures of each, and what scores them.
BENCHMARKS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "geneval-rewritten": (553, 4, ("geneval", "psnr", "ssim", "lpips")),
    "dpg": (1065, 4, ("psnr",)),
    "hpsv2": (3200, 1, ("hpsv2.1",)),
    "imagereward": (100, 10, ("imagereward", "clip")),
}
#: Figures of the table: name, digits, and where it is found: the benchmark, the scorer, the key of its summary.
FIGURES: dict[str, tuple[int, str, str, str]] = {
    "GenEval": (2, "geneval-rewritten", "geneval", "overall"),
    "DPG": (2, "dpg", "dpg", "official"),
    "HPSv2.1": (2, "hpsv2", "hpsv2.1", "average"),
    "ImageReward": (2, "imagereward", "imagereward", "mean"),
    "PSNR": (2, "geneval-rewritten", "psnr", "mean"),
    "SSIM": (4, "geneval-rewritten", "ssim", "mean"),
    "LPIPS": (4, "geneval-rewritten", "lpips", "mean"),
}
#: Most bytes of a picture of 1024x1024.
_PICTURE = 3 * 1024**2 + 4096


@dataclass(frozen=True)
class Row:
    """A row: a policy, and what the paper says of it by model, in the order of `FIGURES`; None where it says nothing.

    Attributes:
        measured: candidate of the GPU's speed measurement that draws as the policy does, or None.
        models: models that have the row.
    """

    title: str
    policy: str
    paper: Mapping[str, tuple[float | None, ...]]
    measured: str | None = None
    models: tuple[str, ...] = MODELS


_NOTHING: dict[str, tuple[float | None, ...]] = {}
ROWS = (
    Row(
        "unpruned",
        "none",
        {
            "infinity-2b": (0.74, 82.84, 30.55, 0.94, None, None, None),
            "infinity-8b": (0.79, 86.44, 31.00, 1.05, None, None, None),
            HART: (0.51, 74.75, 29.07, 0.66, None, None, None),
        },
        "compiled, unpruned",
    ),
    Row(
        "LHEP and SATS",
        "ld-paper",
        {
            "infinity-2b": (0.73, None, 30.47, 0.94, 27.42, 0.8785, 0.1350),
            "infinity-8b": (0.79, None, 30.65, 1.03, 26.87, 0.8622, 0.1135),
            HART: (0.50, 75.61, 28.84, 0.64, 22.15, 0.7454, 0.2325),
        },
        "compiled, LD, no scale skipped",
    ),
    Row(
        "LHEP and SATS, last two skipped",
        "ld-skip-2",
        {
            "infinity-2b": (0.73, 82.65, 30.39, 0.92, 24.85, 0.8239, 0.1842),
            "infinity-8b": (0.79, 86.34, 30.24, 1.03, 23.82, 0.7644, 0.1726),
        },
        "compiled, LD, last two skipped",
        INFINITY,
    ),
    Row("LHEP alone", "lhep", {"infinity-2b": (0.73, None, None, None, 27.39, 0.8769, 0.1348)}),
    Row("LHEP alone, last two skipped", "lhep:skip_last=2", _NOTHING, None, INFINITY),
    Row("SATS alone", "none:delta=0.15", {"infinity-2b": (0.74, None, None, None, None, None, None)}),
    Row("SATS alone, last two skipped", "none:delta=0.15,skip_last=2", _NOTHING, None, INFINITY),
    Row("control: last two skipped", "none:skip_last=2", _NOTHING, "compiled, control: skip-2", INFINITY),
    Row("control: one branch at the end", "none:stop=first", _NOTHING, "compiled, control: stop guidance"),
    Row(
        "control: FastVAR's shares",
        "top-k:share=0.5+0.25,score=distance",
        {HART: (0.49, 74.76, 27.68, 0.60, 20.85, 0.7044, 0.3161)},
        None,
        (HART,),
    ),
)


def rows_of(model: str) -> list[Row]:
    return [row for row in ROWS if model in row.models]


def commands(model: str, bundle: str, folder: str, weights: str) -> Iterator[tuple[str, list[str]]]:
    """Commands that repeat the table, with what each does."""
    step = ["ldp-export", "evaluate"]
    yield (
        "prompts; one set was rewritten by a language model, one has no licence",
        [
            *(*step, "fetch", *BENCHMARKS),
            *("--accept-license", "geneval-rewritten", "--accept-license", "hpsv2"),
        ],
    )
    yield (
        "weights (6.3 GB)",
        [*step, "fetch", "--weights", weights, "geneval", "hpsv2.1", "imagereward", "clip", "lpips"],
    )
    for name in BENCHMARKS:
        drawn = ["generate", bundle, "--benchmark", name, "--device", "cuda", "--output", f"{folder}/{name}"]
        yield f"draw {name}", [*step, *drawn, *_policies(model)]
    for name, (_, _, judges) in BENCHMARKS.items():
        chosen = [part for scorer in judges for part in ("--scorer", scorer)]
        looked = [*chosen, "--weights", weights, "--device", "cuda"]
        yield f"score {name}", [*step, "score", f"{folder}/{name}", *looked]
    yield "DPG's layout", [*step, "export", f"{folder}/dpg", "--layout", "dpg", "--output", f"{folder}/dpg-layout"]
    for name in BENCHMARKS:
        yield f"compare {name}", [*step, "compare", f"{folder}/{name}"]


def _policies(model: str) -> list[str]:
    return [part for row in rows_of(model) if row.policy != "none" for part in ("--policy", row.policy)]


def dpg_command(folder: Path) -> list[str] | None:
    """Command that scores DPG by the answers that lie there; None before there are some for every policy."""
    record = folder / "dpg-layout" / "exported.json"
    if not record.is_file():
        return None
    places = json.loads(record.read_text())["policies"]
    answers = {label: folder / "dpg-layout" / f"{place}_detail.txt" for label, place in places.items()}
    if not all(path.is_file() for path in answers.values()):
        return None
    given = [part for label, path in answers.items() for part in ("--answers", f"{label}={path}")]
    return ["ldp-export", "evaluate", "score", str(folder / "dpg"), "--scorer", "dpg", *given, "--overwrite"]


def cost(model: str, results: Path) -> dict[str, Any]:
    """Pictures and most bytes of a policy, DPG's layout with them; hours on one GPU, None where none were measured."""
    pictures = sum(prompts * images for prompts, images, _ in BENCHMARKS.values())
    seconds = gpu_seconds(model, results)
    hours = {
        row.policy: None if (s := seconds.get(row.measured)) is None else pictures * s / 3600 for row in rows_of(model)
    }
    laid_out = BENCHMARKS["dpg"][0] * BENCHMARKS["dpg"][1]
    return {"pictures": pictures, "bytes": (pictures + laid_out) * _PICTURE, "hours": hours}


def gpu_seconds(model: str, results: Path) -> dict[str | None, float]:
    """Median seconds of a picture by candidate, as measured on a GPU; empty if it was not."""
    path = results / "gpu.json"
    if not path.is_file():
        return {}
    found = dict[str | None, float]()
    for one in json.loads(path.read_text())["results"]:
        if one["model"] == model and one["batch"] == 1:
            times = sorted(sample["wall_ms"] for sample in one["samples"])
            found[one["candidate"]] = times[len(times) // 2] / 1000
    return found


def collected(folder: Path, run: Any) -> dict[str, dict[str, float]]:
    """Figures by policy from runs that were scored and compared."""
    found = dict[str, dict[str, float]]()
    for figure, (_, name, scorer, key) in FIGURES.items():
        if not (folder / name / "scores" / scorer).is_dir():
            continue
        if scorer in ("psnr", "ssim", "lpips"):
            compared = json.loads((folder / name / "compare" / "compare.json").read_text())
            values = {p["label"]: p["results"][scorer]["mean"]["value"] for p in _scored_by(scorer, compared)}
        else:
            said = run(["ldp-export", "evaluate", "summary", str(folder / name), "--scorer", scorer, "--json"])
            values = {one["policy"]: one[key] for one in json.loads(said)["figures"]}
        for policy, value in values.items():
            found.setdefault(policy, {})[figure] = value
    return found


def _scored_by(scorer: str, compared: Mapping[str, Any]) -> list[Any]:
    """Policies of a comparison that a scorer has figures of; the unpruned one is not compared with itself."""
    return [policy for policy in compared["policies"] if scorer in policy["results"]]


#: Figures of likeness to the unpruned pictures, which have a table of their own.
LIKENESS = ("PSNR", "SSIM", "LPIPS")


def table(model: str, results: Path) -> str:
    """Rows of a model: what was measured, empty where nothing was, and the paper's figure in brackets."""
    scores = tuple(figure for figure in FIGURES if figure not in LIKENESS)
    lines = [f"| {model} | policy | {' | '.join(scores)} |", f"|---|---|{'---|' * len(scores)}"]
    lines += [f"| {row.title} | `{row.policy}` | {_cells(row, model, scores, results)} |" for row in rows_of(model)]
    lines += ["", f"| {model}, likeness | {' | '.join(LIKENESS)} |", f"|---|{'---|' * len(LIKENESS)}"]
    pruned = [row for row in rows_of(model) if row.policy != "none"]
    lines += [f"| `{row.policy}` | {_cells(row, model, LIKENESS, results)} |" for row in pruned]
    return "\n".join(lines)


def _cells(row: Row, model: str, figures: Sequence[str], results: Path) -> str:
    path = results / f"paper-table-{model}.json"
    here: dict[str, float] = json.loads(path.read_text())["figures"].get(row.policy, {}) if path.is_file() else {}
    said = dict(zip(FIGURES, row.paper.get(model, (None,) * len(FIGURES)), strict=True))
    return " | ".join(_cell(here.get(figure), said[figure], FIGURES[figure][0]) for figure in figures)


def _cell(here: float | None, paper: float | None, digits: int) -> str:
    measured = "" if here is None else f"{here:.{digits}f}"
    return f"{measured} ({paper:.{digits}f})".strip() if paper is not None else measured


def cost_table(results: Path) -> str:
    """Hours of drawing each policy's pictures on one H200, by model."""
    costs = {model: cost(model, results)["hours"] for model in INFINITY}  # no other was measured
    lines = [f"| policy | {' | '.join(f'{model}, hours' for model in INFINITY)} |", f"|---|{'---|' * len(INFINITY)}"]
    for row in rows_of(INFINITY[0]):
        hours = [costs[model][row.policy] for model in INFINITY]
        lines.append(f"| `{row.policy}` | {' | '.join('' if h is None else f'{h:.1f}' for h in hours)} |")
    return "\n".join(lines)


def commands_text(model: str, bundle: str, folder: str, weights: str) -> str:
    """Commands as they are typed in a shell."""
    policies = " ".join(_policies(model))
    lines = [f'POLICIES="{policies}"']
    for what, command in commands(model, bundle, folder, weights):
        lines += [f"# {what}", shlex.join(command).replace(policies, "$POLICIES")]
    return "\n".join(lines)


#: Bundle, folder of runs and folder of weights, as the page names them.
_PLACES = ("BUNDLE", "RUNS", "WEIGHTS")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


def page_with_tables(page: str, results: Path) -> str:
    """Text of the page with everything between its markers written anew."""
    for model in MODELS:
        page = between(page, model, table(model, results))
    return between(
        between(page, "cost", cost_table(results)), "commands", _indented(commands_text(INFINITY[0], *_PLACES))
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS)
    parser.add_argument("--run", metavar="BUNDLE", help="run every command with this bundle")
    parser.add_argument("--weights", default="WEIGHTS", help="folder of weights")
    parser.add_argument("--folder", type=Path, default=Path("RUNS"), help="folder of the runs")
    parser.add_argument("--collect", type=Path, metavar="FOLDER", help="write the figures of the runs into results/")
    parser.add_argument("--page", action="store_true", help="write the page from results/")
    options = parser.parse_args(arguments)
    if options.page:
        write_pages()
    elif options.model is None:
        parser.error(f"--model {' or '.join(MODELS)}")
    elif options.collect:
        write_figures(options.model, options.collect)
    elif options.run:
        run_all(options.model, options.run, options.folder, options.weights)
    else:
        _say(options.model, options.folder, options.weights)


def write_pages() -> None:
    """Writes the tables of the pages on benchmarks of others, from the raw results alone."""
    for path, text in pages(RESULTS).items():
        path.write_text(text)


def pages(results: Path) -> dict[Path, str]:
    """Pages on benchmarks of others, with their tables."""
    table, guide = REPORTS / "paper-table.md", REPORTS.parent / "guide" / "benchmarks.md"
    return {
        table: page_with_tables(table.read_text(), results),
        guide: between(guide.read_text(), "scorers", scorers.table(results)),
    }


def _say(model: str, folder: Path, weights: str) -> None:
    print(commands_text(model, "BUNDLE", str(folder), weights))
    found, count = cost(model, RESULTS), len(rows_of(model)) + 1
    print(f"{found['pictures']} pictures a policy, {count} policies with the null run:")
    print(f"at most {found['bytes'] * count / 1e9:.0f} GB")
    for policy, hours in found["hours"].items():
        print(f"  {policy}: " + ("not measured" if hours is None else f"{hours:.1f} hours on one H200"))


def run_all(model: str, bundle: str, folder: Path, weights: str) -> None:
    """Runs every command, and collects what they found."""
    for what, command in commands(model, bundle, str(folder), weights):
        print(f"# {what}", flush=True)
        _called(command)
    answered = dpg_command(folder)
    if answered is None:
        print(f"DPG waits for the official script's detail files: {folder}/dpg-layout/NAME_detail.txt")
    else:
        _called(answered)
        _called(["ldp-export", "evaluate", "compare", str(folder / "dpg")])
    write_figures(model, folder)


def write_figures(model: str, folder: Path) -> None:
    figures = collected(folder, lambda command: _called(command, quiet=True))
    settings = {
        name: json.loads((folder / name / "run.json").read_text()) | {"policies": None}
        for name in BENCHMARKS
        if (folder / name / "run.json").is_file()
    }
    path = RESULTS / f"paper-table-{model}.json"
    path.write_text(json.dumps({"model": model, "runs": settings, "figures": figures}, indent=1) + "\n")
    print(path)


def _called(command: list[str], quiet: bool = False) -> str:
    given = [sys.executable, "-m", "ldp_export", *command[1:]]
    made = subprocess.run(given, text=True, stdout=subprocess.PIPE if quiet else None)
    if made.returncode:
        raise SystemExit(made.returncode)  # the command has said why
    return made.stdout or ""


if __name__ == "__main__":
    main()

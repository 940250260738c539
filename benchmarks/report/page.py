"""Writes the pages of measured results, tables and charts, from the raw files alone; measures nothing.

    python -m benchmarks.report.page                                   # benchmarks/results -> docs/results/measured
    python -m benchmarks.report.page --results FOLDER --pages FOLDER   # charts: beside the pages

Reads every result of `ldp-export bench` (`*.json` of its schema), and those of `gpu.py`, `choosing_overhead.py`,
`large_build.py`, `quantized_scales.py` and `precision_verdicts.py`. A page is written for each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import kernels as gpu_kernels
from benchmarks.paths import MEASURED, RESULTS
from benchmarks.report import builds as build_results
from benchmarks.report import chart, gpu_chart
from benchmarks.report import choosing as choosing_results
from benchmarks.report import gpu as gpu_results
from benchmarks.report import precision as precision_results
from benchmarks.report.read import read_result
from benchmarks.report.targets import Verdict, cpu_verdicts

_BENCH = "ldp-export/bench/"
_INTRODUCTION = """# Measured: every table and chart

Written by `make results` from the raw files in `benchmarks/results/`, tables and pictures alike; edit the scripts, not
these pages. What is compared, and how to measure anew: `benchmarks/README.md`.

Speed-ups are paired ratios (same prompt, same repetition, candidates in turn) with 95 % intervals; milliseconds are
medians of warm calls unless they are called means. PSNR is against the unpruned picture of the same seed and engines:
over the whole picture, and over the drawn objects alone."""

#: Of results that do not tell a processor's instruction sets.
_EARLIER = (
    "measured before results told a processor's instruction sets, and when engines in 8 bits used all 8 bits of their "
    "weights (today 7: 0.3 dB less of 41, of 24 pictures)"
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--pages", type=Path, default=MEASURED)
    options = parser.parse_args(arguments)
    write_pages(options.results, options.pages)
    print(options.pages)


def write_pages(results: Path, folder: Path) -> None:
    """The pages, and their charts beside them; pages and charts of results that are gone go too."""
    folder.mkdir(parents=True, exist_ok=True)
    kept: list[str] = []
    for path, result in bench_results(results):
        kept += chart.draw_all(result, folder, path.stem, fingerprint(path))
    gpu = results / "gpu.json"
    if gpu.is_file():
        kept += gpu_chart.draw(json.loads(gpu.read_text()), folder, fingerprint(gpu))
    pages = page_texts(results, folder)
    for old in (*folder.glob("*.png"), *folder.glob("*.md")):
        if old.name not in kept and old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def page_texts(results: Path, folder: Path) -> dict[str, str]:
    """Pages as Markdown by file name, `index.md` first; `folder` holds their charts."""
    pages: dict[str, str | None] = {}
    for path, result in bench_results(results):
        pictures = [p.name for p in sorted(folder.glob(f"{path.stem}-*.png"))]
        pages[f"{path.stem}.md"] = _page(path.name, result, pictures)
    pages["precision.md"] = precision_results.page(results)
    pages["choosing.md"] = choosing_results.page(results)
    gpu, loss = (
        json.loads(path.read_text()) if path.is_file() else None
        for path in (results / "gpu.json", results / "late-precision-cpu.json")
    )
    pictures = [p.name for p in sorted(folder.glob("gpu-*.png"))]
    pages["gpu.md"] = gpu_results.page(gpu, pictures, loss, gpu_kernels.read_tables(results))
    pages["builds.md"] = build_results.page(results)
    written = {name: text + "\n" for name, text in pages.items() if text is not None}
    rows = [(f"[{text.splitlines()[0][2:]}]({name})", f"`{_source(name)}`") for name, text in written.items()]
    return {"index.md": f"{_INTRODUCTION}\n\n{table(('page', 'raw results'), rows)}\n", **written}


def _source(page: str) -> str:
    """File of raw results that a page is written from."""
    others = {"precision.md": ", ".join(precision_results.FILES), "choosing.md": choosing_results.FILE}
    return {**others, "builds.md": "large-build-*.json"}.get(page, f"{page.removesuffix('.md')}.json")


def bench_results(results: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The files of `ldp-export bench`: trained weights first, then by name."""
    loaded = [(path, read_result(path)) for path in sorted(results.glob("*.json"))]
    found = [(path, r) for path, r in loaded if str(r.get("schema", "")).startswith(_BENCH)]
    return sorted(found, key=lambda pair: pair[1]["model"]["random_weights"])


def fingerprint(path: Path) -> str:
    """What a chart remembers of the file that it was drawn from."""
    return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _page(name: str, result: dict[str, Any], pictures: Sequence[str]) -> str:
    model, (height, width) = result["model"], result["model"]["image"]
    weights = ", random weights: speed only" if model["random_weights"] else ""
    instructions = result["hardware"].get("instructions")
    processor = f"; a processor with {instructions}" if instructions else ""
    parts = [f"# {model['name']}, {height}x{width}{weights}{processor}", _method(name, result)]
    parts += [f"- {note}" for note in result["notes"] + ([_EARLIER] if instructions is None else [])]
    if not model["random_weights"]:
        parts += ["## Targets", _verdicts(cpu_verdicts(result))]
    parts += ["## Latency and quality", _latency(result), "## Where the time goes", _phases(result)]
    parts += [f"![{_caption(picture)}]({picture})" for picture in pictures]
    return "\n\n".join(parts)


def _caption(picture: str) -> str:
    captions = {
        "front": "speed against fidelity, whole picture and objects",
        "phases": "milliseconds of every candidate by phase",
        "scales": "milliseconds of every scale by phase",
        "waterfall": "what each technique adds",
    }
    return captions[Path(picture).stem.rpartition("-")[2]]


def _method(name: str, result: dict[str, Any]) -> str:
    machine, software, settings = result["hardware"], result["software"], result["settings"]
    versions = ", ".join(f"{package} {version}" for package, version in software.items())
    loss = result["precision_loss"]
    return (
        f"`{name}`, {result['created'][:10]}: {machine['gpu'] or machine['cpu']}, {machine['cores_usable']} cores of "
        f"{machine['memory_gib']} GiB, {settings['threads']} threads, load {machine['load_average']} at the start; "
        f"{machine['os']}; {versions}. Bundle `{result['model']['version']}` ({result['model']['precision']}), "
        f"{_conditions(settings)} x {settings['repeats']} repetitions after {settings['warmup']} warm-up calls, scope "
        f"{settings['scope']}, guidance {settings['guidance']:g}, temperature {settings['temperature']:g}, top-p "
        f"{settings['top_p']:g}. Measured peak of a float32 matrix product: {result['peak_gflops']:.0f} GFLOP/s."
        + ("" if loss is None else f" Unpruned engines against eager PyTorch: {loss['psnr_db']:.1f} dB.")
    )


def _conditions(settings: dict[str, Any]) -> str:
    """What was drawn, counted."""
    for kind in ("prompts", "classes"):
        if settings.get(kind):
            return f"{len(settings[kind])} {kind}"
    return f"{settings['prompt_embeds']['count']} random text features"


def _verdicts(verdicts: Iterable[Verdict]) -> str:
    rows = [(v.target, v.found, "reached" if v.reached else "**missed**", v.reason) for v in verdicts]
    return table(("target", "found", "", "why"), rows)


def _latency(result: dict[str, Any]) -> str:
    heads = ("candidate", "batch", "p50 ms", "p90", "p99", "over eager", "over unpruned engines")
    heads += ("PSNR dB", "objects dB", "SSIM", "tokens")
    rows = [
        (
            c["name"],
            str(c["batch"]),
            *(f"{c[p]:.1f}" for p in ("p50_ms", "p90_ms", "p99_ms")),
            _ratio(c, "speedup_vs_eager"),
            _ratio(c, "speedup_vs_unpruned"),
            _number(c["psnr_db"]),
            _number(c["psnr_objects_db"]),
            _number(c["ssim"], 3),
            f"{c['tokens_computed']:.0f} of {c['tokens_full']}",
        )
        for c in result["candidates"]
    ]
    return table(heads, rows)


def _phases(result: dict[str, Any]) -> str:
    heads = ("candidate", "batch", "text", "blocks", "loop", "decode", "loop share", "CPU p50", "of peak")
    heads += ("load s", "first ms", "peak MiB")
    rows = []
    for c in result["candidates"]:
        phases = c["phases_ms"]
        share = phases["loop"] / sum(phases.values())
        times = (f"{phases[p]:.1f}" for p in chart.PHASES)
        memory = c["peak_device_mb"] or c["peak_rss_mb"]
        rest = (f"{c['cpu_p50_ms']:.1f}", f"{c['peak_share']:.0%}", f"{c['load_s']:.2f}", f"{c['first_ms']:.0f}")
        rows.append((c["name"], str(c["batch"]), *times, f"{share:.1%}", *rest, f"{memory:.0f}"))
    return "Mean milliseconds of a call; cold start and memory apart.\n\n" + table(heads, rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _ratio(c: dict[str, Any], name: str) -> str:
    if c[name] is None:
        return ""
    interval = c[f"{name}_ci95"]
    return f"{c[name]:.2f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()

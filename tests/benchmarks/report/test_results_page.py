"""Pages of results: a tiny measurement to tables and charts; the committed pages are what the raw files give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from ldp_runtime.bundle.files import Bundle
from PIL import Image

from benchmarks.paths import MEASURED, REPORTS, RESULTS
from benchmarks.report import choosing as choosing_results
from benchmarks.report import gpu as gpu_results
from benchmarks.report import page as results_page
from benchmarks.report import targets
from benchmarks.report.ablation import page_with_tables
from benchmarks.report.read import read_result
from ldp_export.cli.bench import command


@pytest.fixture(scope="module")
def results(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the result of one short run of the command line."""
    folder = tmp_path_factory.mktemp("results")
    arguments = [str(tiny_bundle.folder), "--no-eager", "--policy", "skip:count=1", "--repeats", "1", "--warmup", "0"]
    arguments += ["--threads", "1", "--output", str(folder / "tiny.json")]
    CliRunner().invoke(command, arguments, catch_exceptions=False)
    return folder


def test_pages_of_a_run(results: Path, tmp_path: Path) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for gone in ("of-a-file-that-is-gone-front.png", "of-a-file-that-is-gone.md"):
        (pages / gone).write_bytes(b"")
    results_page.main(["--results", str(results), "--pages", str(pages)])
    text, result = (pages / "tiny.md").read_text(), json.loads((results / "tiny.json").read_text())
    for c in result["candidates"]:
        assert f"| {c['name']} | 1 | {c['p50_ms']:.1f} |" in text
    assert result["hardware"]["cpu"] in text
    assert result["software"]["torch"] in text
    assert all(note in text for note in result["notes"])
    pictures = [f"tiny-{n}.png" for n in ("front", "phases", "scales", "waterfall")]
    assert sorted(p.name for p in pages.iterdir()) == sorted([*pictures, "builds.md", "gpu.md", "index.md", "tiny.md"])
    assert all(f"]({picture})" in text for picture in pictures)
    assert "](tiny.md) | `tiny.json` |" in (pages / "index.md").read_text()
    before = {path: path.read_bytes() for path in pages.iterdir()}
    results_page.write_pages(results, pages)
    assert {path: path.read_bytes() for path in pages.iterdir()} == before


def test_committed_pages_are_what_the_raw_files_give() -> None:
    """`make results` mends them."""
    assert {p.name: p.read_text() for p in MEASURED.glob("*.md")} == results_page.page_texts(RESULTS, MEASURED)
    for path, _ in results_page.bench_results(RESULTS):
        pictures = list(MEASURED.glob(f"{path.stem}-*.png"))
        assert pictures
        for picture in pictures:
            with Image.open(picture) as image:
                assert image.info["Source"] == results_page.fingerprint(path), picture


def test_committed_tables_of_the_ablation_are_what_the_raw_files_give() -> None:
    """`make results` mends them."""
    page = (REPORTS / "ablation.md").read_text()
    assert page == page_with_tables(page, read_result(RESULTS / "infinity-shapes-ablation.json"), RESULTS)


def test_choosing(tmp_path: Path) -> None:
    """Shares of a run, beside the target; nothing without a measurement."""
    assert choosing_results.page(tmp_path) is None
    entries = {
        name: {"milliseconds_per_scale": {"8": 1.0, "9": 2.0}, "run_milliseconds": 3 / share, "share": share}
        for name, share in (("ld", 0.005), ("ld-paper", 0.012))
    }
    machine = {"cpu": "a processor", "cores_usable": 2, "load_average": 0.5}
    result = {"model": "tiny", "size": "0.25M", "hardware": machine, "policies": entries}
    (tmp_path / choosing_results.FILE).write_text(json.dumps(result))
    text = choosing_results.page(tmp_path)
    assert text is not None
    assert "| `ld-fast` | 8: 1.00, 9: 2.00 | 600 | 0.50% | reached |" in text  # what it was when it was measured
    (tmp_path / choosing_results.FILE).write_text(json.dumps({"grammar": 2, **result}))
    today = choosing_results.page(tmp_path)
    assert today is not None
    assert "| `ld` | 8: 1.00, 9: 2.00 | 600 | 0.50% | reached |" in today
    assert "| `ld-paper` | 8: 1.00, 9: 2.00 | 250 | 1.20% | **missed** by 0.20% |" in text


def candidate(policy: str, speed: float, psnr: float | None, loop: float = 1.0) -> dict:
    name = "engines" if policy == "none" else f"engines + {policy}"
    phases = {"text": 1.0, "blocks": 98.0 - loop, "loop": loop, "decode": 1.0}
    plain = {"name": name, "policy": policy, "batch": 1, "psnr_db": psnr, "psnr_objects_db": None, "phases_ms": phases}
    plain["precision_psnr_db"] = None
    return plain | {"speedup_vs_eager": speed, "speedup_vs_unpruned": speed, "peak_share": 0.5, "scales": []}


@pytest.mark.parametrize(
    ("speed", "psnr", "loop", "reached"),
    [
        (2.4, 30.0, 1.0, [True, True, True]),
        (2.4, 25.0, 4.0, [False, False, False]),
        (2.0, 33.0, 1.0, [False, True, True]),
    ],
)
def test_targets(speed: float, psnr: float, loop: float, reached: list[bool]) -> None:
    """The front of the controls: 30 dB at 2x, 28 dB at 3x."""
    candidates = [candidate("skip:count=1", 2.0, 30.0), candidate("skip:count=2", 3.0, 28.0)]
    found = targets.cpu_verdicts({"candidates": [*candidates, candidate("ld", speed, psnr, loop)]})
    assert [v.reached for v in found] == reached
    assert all(bool(v.reason) != v.reached for v in found)


def test_engines_of_another_precision_may_reach_the_speed() -> None:
    """What their precision costs is said beside; the fronts are of the bundle's own engines."""
    slow = candidate("ld", 2.0, 33.0)
    quick = candidate("ld", 2.4, 33.0) | {"name": "onnxruntime, int8 decoder + ld", "precision_psnr_db": 46.7}
    speed, *_ = targets.cpu_verdicts({"candidates": [slow, quick]})
    assert speed.reached
    assert speed.found == "onnxruntime, int8 decoder + ld: 2.40x, 33.00 dB (their precision alone: 46.7 dB)"


def test_no_target_is_read_into_a_run_without_pruning() -> None:
    (loop,) = targets.cpu_verdicts({"candidates": [candidate("none", 1.0, None)]})
    assert loop.reached


def test_gpu_page() -> None:
    assert "Not measured yet" in gpu_results.page(None)
    times = {"eager": 100.0, "compiled, unpruned": 40.0, "compiled, LD, no scale skipped": 30.0}
    entries = [
        {"model": "infinity-8b", "batch": 1, "candidate": name, "first_s": 1.0, "peak_device_mb": None}
        | {"samples": [{"wall_ms": 2 * ms, "device_ms": ms}], "blocks_tflop": 16.0}
        for name, ms in times.items()
    ]
    failed = {"model": "infinity-8b", "batch": 4, "candidate": "eager", "error": "OutOfMemoryError: no"}
    hardware = {"gpu": "G", "peak_bfloat16_tflops": 800.0}
    result = {"created": "2026-01-01", "hardware": hardware, "keep": [0.4], "results": [*entries, failed]}
    text = gpu_results.page(result)
    assert "| compiled, unpruned | 40.0 | 2.50 | 16.0 | 50% |" in text
    assert "| 4 | eager | failed: OutOfMemoryError: no |" in text
    assert "reached: compiled, unpruned is 2.50" in text
    assert text.count("missed") == 1
    assert "3.33 times as fast as eager, to be reached was 4 on an H100 (that leaves 25 ms, of which" in text

"""Figures that people wrote into pages are those of the committed results."""

from __future__ import annotations

from functools import cache
from statistics import median
from typing import Any

import pytest
from helpers.markdown import DOCS
from helpers.tree import ROOT

from benchmarks.paths import RESULTS
from benchmarks.report.read import read_result

README = (ROOT / "README.md").read_text(encoding="utf-8")
POLICIES = ("ld", "ld:rho=0.9", "ld-fast", "ld-paper", "none:stop=4", "none:stop=4,skip_last=1")
GPU_ROWS = {
    "eager PyTorch": "eager",
    "compiled, nothing pruned": "compiled, unpruned",
    "control: guidance stopped": "compiled, control: stop guidance",
    "control: last scale skipped": "compiled, control: skip-1",
    "compiled, LD, no scale skipped": "compiled, LD, no scale skipped",
    "control: last two skipped": "compiled, control: skip-2",
    "compiled, LD, last two skipped": "compiled, LD, last two skipped",
}


@cache
def result(name: str) -> dict[str, Any]:
    return read_result(RESULTS / f"{name}.json")


#: The timed engines, by their names in the result.
FLOAT32 = "engines"
(INT8,) = (
    candidate["name"]
    for candidate in result("infinity-shapes-policies-vnni-cpu")["candidates"]
    if "int8" in candidate["name"] and candidate["policy"] == "none"
)


def timed(engines: str, policy: str | None = None) -> dict[str, Any]:
    name = engines if policy is None else f"{engines} + {policy}"
    return next(c for c in result("infinity-shapes-policies-vnni-cpu")["candidates"] if c["name"] == name)


def ratio(candidate: dict[str, Any]) -> str:
    low, high = candidate["speedup_vs_eager_ci95"]
    return f"{candidate['speedup_vs_eager']:.2f} [{low:.2f}, {high:.2f}]"


def accepted(confirmed: str) -> dict[str, str]:
    return {name: f"{p['accepted_percent']:.1f}" for name, p in result(confirmed)["policies"].items()}


@cache
def gpu_times(model: str) -> dict[str, float]:
    entries = (e for e in result("gpu")["results"] if e["model"] == model and e["batch"] == 1)
    return {e["candidate"]: median(sample["device_ms"] for sample in e["samples"]) for e in entries}


def rows(text: str) -> dict[str, list[str]]:
    """Rows of all tables of a page, without emphasis, by their first cell."""
    lines = (line for line in text.replace("**", "").splitlines() if line.startswith("|"))
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize(
    ("engines", "label", "confirmed"),
    [
        (INT8, "embedded model, `ld`, 8 bits, two cores with VNNI", "non-inferior-confirm-int8"),
        (FLOAT32, "the same in float32", "non-inferior-confirm"),
    ],
)
def test_readme_rows_of_the_embedded_model(engines: str, label: str, confirmed: str) -> None:
    pruned, shares = timed(engines, "ld"), accepted(confirmed)
    assert rows(README)[label] == [
        f"{timed('eager')['p50_ms']:.0f} ms",
        f"{timed(engines)['p50_ms']:.0f} ms",
        f"{pruned['p50_ms']:.0f} ms: {ratio(pruned).replace(' [', ' times [')}",
        f"{shares['ld']} / {shares['none']} %",
    ]


@pytest.mark.parametrize(("model", "name"), [("infinity-8b", "Infinity-8B"), ("infinity-2b", "Infinity-2B")])
def test_readme_rows_of_the_gpu(model: str, name: str) -> None:
    times = gpu_times(model)
    eager, engines, pruned = (times[c] for c in ("eager", "compiled, unpruned", "compiled, LD, no scale skipped"))
    expected = [f"{eager:.0f} ms", f"{engines:.0f} ms", f"{pruned:.0f} ms: {eager / pruned:.2f} times", "not known"]
    assert rows(README)[f"{name}'s shape, H200 \\*"] == expected
    assert "Random weights, so speed only; an earlier form" in README


def test_the_first_line_and_the_control() -> None:
    confirmed, shares = result("non-inferior-confirm-int8"), accepted("non-inferior-confirm-int8")
    assert f"draws {timed(INT8, 'ld')['speedup_vs_eager']:.2f} times" in README
    assert f"(`none:stop=4`), reaches {timed(INT8, 'none:stop=4')['speedup_vs_eager']:.2f} times in 8 bits" in README
    assert f"({shares['ld']} and {shares['none']} % of 1,000)" in README
    assert confirmed["policies"]["ld"]["non_inferior"]
    assert f"less than {confirmed['margin_points']:.0f} points" in README


@pytest.mark.parametrize("policy", POLICIES)
def test_fast_pictures(policy: str) -> None:
    found = rows((DOCS / "results" / "fast-pictures.md").read_text(encoding="utf-8"))
    both = [timed(engines, policy) for engines in (FLOAT32, INT8)]
    expected = [cell for c in both for cell in (f"{c['p50_ms']:.0f}", ratio(c))]
    expected += [f"{both[1][key]:.1f}" for key in ("psnr_db", "psnr_objects_db")]
    assert found[f"{'control ' * policy.startswith('none')}`{policy}`"] == [
        *expected,
        f"{both[1]['tokens_computed']:.0f}",
    ]


@pytest.mark.parametrize("policy", [None, "ld", "ld-fast"])
def test_what_8_bits_give(policy: str | None) -> None:
    found = rows((DOCS / "backends" / "int8.md").read_text(encoding="utf-8"))
    expected = [ratio(timed(engines, policy)) for engines in (FLOAT32, INT8)]
    assert found["nothing pruned" if policy is None else f"`{policy}`"] == expected


@pytest.mark.parametrize(
    ("engines", "confirmed"), [("float32", "non-inferior-confirm"), ("8 bits", "non-inferior-confirm-int8")]
)
def test_accepted_pictures(engines: str, confirmed: str) -> None:
    shares = accepted(confirmed)
    policies = rows((DOCS / "guide" / "policies.md").read_text(encoding="utf-8"))[engines]
    paired = []
    for name in ("ld", "ld-fast"):
        value, low, high = result(confirmed)["policies"][name]["difference_points"]
        paired.append(f"{shares[name]} %, {value:+.1f} [{low:+.1f}, {high:+.1f}]")
    assert policies == [f"{shares['none']} %", *paired]
    short = rows((DOCS / "results" / "fast-pictures.md").read_text(encoding="utf-8"))[engines]
    assert short == [f"{shares[name]} %" for name in ("none", "ld", "ld-fast")]


@pytest.mark.parametrize("label", GPU_ROWS)
def test_gpu(label: str) -> None:
    cells = []
    for model in ("infinity-8b", "infinity-2b"):
        times = gpu_times(model)
        over = times["eager"] / times[GPU_ROWS[label]]
        cells += [f"{times[GPU_ROWS[label]]:.0f}", "1" if over == 1 else f"{over:.2f}"]
    assert rows((DOCS / "results" / "gpu.md").read_text(encoding="utf-8"))[label] == cells

"""Answers in words that take no PyTorch: they come at once, and without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from ldp_runtime.bundle.files import Bundle

from ldp_export.building.estimate import estimate_build
from ldp_export.building.plan import BuildOptions, BuildPlan
from ldp_export.checkpoints.sources import Sources
from ldp_export.cli import _VERBS, main
from ldp_export.families.count import count_model
from ldp_export.models.counts import counts_of
from ldp_export.models.registry import MODELS, find_model

#: Runs a command line and says which heavy libraries it has imported.
_CODE = """
import sys
from ldp_export.cli import main
try:
    main(sys.argv[1:])
finally:
    heavy = {"torch", "transformers", "onnx", "onnxscript", "matplotlib", "scipy"} & set(sys.modules)
    print("imported:", sorted(heavy), file=sys.stderr)
"""


def answer(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    command = [sys.executable, "-c", _CODE, *map(str, arguments)]
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | paths | environment)


@pytest.mark.parametrize(
    "arguments",
    [
        ["models"],
        ["models", "--all", "--json"],
        ["doctor"],
        ["inspect", "BUNDLE"],
        ["inspect", "BUNDLE", "--json"],
        ["build", "--dry-run"],
        ["build", "--quantize", "int8", "--int8-decoder", "--chunk", "2", "--dry-run"],
        ["build", "--print-config"],
    ],
)
def test_text_takes_no_pytorch(arguments: list[str], small_bundle: Bundle, tmp_path: Path) -> None:
    given = [str(small_bundle.folder) if word == "BUNDLE" else word for word in arguments]
    if "--dry-run" in given:
        given += ["--output", str(tmp_path / "b")]
    made = answer(*given)
    assert made.returncode == 0, made.stderr
    assert made.stderr.endswith("imported: []\n"), made.stderr
    assert made.stdout


@pytest.mark.parametrize("verb", [*_VERBS, "evaluate generate", "evaluate score", "evaluate compare"])
def test_help_takes_no_pytorch(verb: str) -> None:
    made = answer(*verb.split(), "--help")
    assert made.returncode == 0, made.stderr
    assert made.stderr.endswith("imported: []\n"), made.stderr


@pytest.mark.parametrize(
    "arguments", [["build", "--model", "infinity-2b"], ["build", "--model", "var-d16"], ["fetch", "infinity-8b"]]
)
def test_dry_runs_without_a_hub(arguments: list[str], tmp_path: Path) -> None:
    """They answer from the registry, and say so; without --dry-run it is an error."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    made = answer(*arguments, "--dry-run", **offline)
    assert made.returncode == 0, made.stderr
    assert "the hub was not asked" in made.stderr
    assert "imported: []" in made.stderr
    said = json.loads(answer(*arguments, "--dry-run", "--json", **offline).stdout)
    fetch = said.get("fetch", said)
    assert "HF_HUB_OFFLINE" in fetch["registry_only"]
    assert fetch["bytes"] > 10**9
    if arguments[0] == "build":
        assert said["plan"]["graphs"][-1] == "decoder"
        assert said["plan"]["estimate"]["host_memory"] > 10**9
    refused = answer(*arguments, **offline)
    assert refused.returncode == 12
    assert "HF_HUB_OFFLINE" in refused.stderr


@pytest.mark.parametrize("name", MODELS)
def test_the_registry_counts_what_the_modules_hold(name: str) -> None:
    """Where this fails: python -m ldp_export.families.count."""
    assert counts_of(name) == count_model(find_model(name))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("name", "chunk"), [("infinity-shapes", None), ("infinity-2b", 5), ("var-d36", 8)])
def test_counted_graphs_are_as_large_as_the_exported_ones(
    name: str, chunk: int | None, precision: str, tmp_path: Path
) -> None:
    from ldp_export.checkpoints.sources import EMBEDDED

    spec = find_model(name)
    encoder = EMBEDDED / "infinity_shapes" / "text_encoder" if spec.embedded else None
    sources = Sources(tmp_path / "t", tmp_path / "v", encoder)
    plan = BuildPlan(spec, sources, BuildOptions(tmp_path / "b", chunk=chunk, precision=precision))  # pyright: ignore
    for graph in plan.graph_names:
        counted = plan.family.graph_bytes(graph, plan.options.precision)
        assert counted == plan.graph(graph, plan.options.precision).weight_bytes()


def test_a_plan_of_what_is_not_here_yet(tmp_path: Path) -> None:
    """Its estimate counts the files that would be fetched; a dry run refuses what a build would refuse."""
    spec = find_model("infinity-2b")
    options = BuildOptions(tmp_path / "b")
    assert estimate_build(BuildPlan(spec, Sources(tmp_path / "t", tmp_path / "v", here=False), options)).seconds > 60
    assert Sources(Path(__file__), Path(__file__), here=False).size() == 0  # a file here may have the name of one there
    refused = CliRunner().invoke(main, ["build", "--dry-run", "--size", "3M"])
    assert refused.exit_code == 2
    assert "unknown size" in refused.output

"""Random models of both families: no correct engine is rejected, and planted errors are caught.

    python -m benchmarks.study.planted_errors --models 40

Each model's engines are verified as they are, and then with one error of each kind. An error counts if it moves logits
by at least 100 times their rounding; one that does not is drawn anew. Resumable: models that are in the result are
skipped. Some seconds for each model on two quiet cores. Writes benchmarks/results/planted-errors-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from ldp_runtime.bundle.files import REFERENCE, Bundle
from ldp_runtime.engines.onnxruntime import OnnxRuntimeEngine
from ldp_runtime.errors import NonFiniteError
from ldp_runtime.pipeline.open_engines import open_engines

from benchmarks.paths import RESULTS, result_file
from benchmarks.study.random_models import (
    SIZES,
    Draw,
    Exported,
    Weights,
    build_exported,
    family_of,
    spec_of,
    write_weights,
)
from ldp_export.bench.hardware import hardware, software
from ldp_export.checkpoints.sources import EMBEDDED, Sources
from ldp_export.families.base import Family
from ldp_export.families.choose import choose_family
from ldp_export.models.registry import find_model
from ldp_export.verification.bounds import FACTOR, scale_rounding
from ldp_export.verification.case_runs import case_rows, run_case
from ldp_export.verification.cases import ReferenceCases
from ldp_export.verification.verify import Check, verify_bundle

RESULT = RESULTS / "planted-errors-cpu.json"

#: Smallest move of the logits, in units of their rounding, that makes an error count; and how often one is drawn anew.
COUNTS, TRIES = 100.0, 8

Inputs = dict[str, torch.Tensor]
Change = Callable[[str, Weights], Weights]


def _unchanged(graph: str, weights: Weights) -> Weights:
    return weights


@dataclass(frozen=True)
class Planted:
    """An error: changed weights of graphs (or constants), or changed inputs of the blocks' engines.

    Attributes:
        where: what was changed, in words.
        weights: changes the weights of a graph, by its name.
        inputs: changes the inputs of a call of the blocks.
    """

    where: str
    weights: Change = _unchanged
    inputs: Callable[[Inputs], Inputs] | None = None


def _weight(
    exported: Exported, rng: random.Random, fits: Callable[[str], bool], change: Callable[[torch.Tensor], torch.Tensor]
) -> Planted | None:
    """A change of one of the blocks' weights whose name fits; None if there is none."""
    names = [(g, n) for g, kept in exported.stored.items() if g.startswith("blocks") for n in kept if fits(n)]
    if not names:
        return None
    graph, name = rng.choice(names)

    def changed(at: str, weights: Weights) -> Weights:
        return {**weights, name: change(weights[name].float().clone()).contiguous()} if at == graph else weights

    return Planted(f"{graph}, {name}", changed)


def transposed(exported: Exported, family: Family, rng: random.Random) -> Planted | None:
    """One square matrix, transposed; of the keys, queries and values only one."""

    def flip(weight: torch.Tensor) -> torch.Tensor:
        width = weight.shape[1]
        part = rng.randrange(len(weight) // width) * width
        weight[part : part + width] = weight[part : part + width].t().clone()
        return weight

    return _weight(exported, rng, lambda name: name.endswith(("proj.weight", "mat_q.weight", "mat_qkv.weight")), flip)


def swapped_heads(exported: Exported, family: Family, rng: random.Random) -> Planted | None:
    """Queries of two heads, swapped."""
    heads = family.entry.heads
    first, second = rng.sample(range(heads), 2) if heads > 1 else (0, 0)

    def swap(weight: torch.Tensor) -> torch.Tensor:
        queries = weight[: weight.shape[1]].view(heads, -1, weight.shape[1])
        queries[[first, second]] = queries[[second, first]].clone()
        return weight

    return _weight(exported, rng, lambda name: name.endswith("mat_qkv.weight"), swap)


def missing_bias(exported: Exported, family: Family, rng: random.Random) -> Planted | None:
    return _weight(exported, rng, lambda name: name.endswith("bias"), torch.zeros_like)


def half_island(exported: Exported, family: Family, rng: random.Random) -> Planted | None:
    """One matrix that is multiplied in float16's precision."""
    matrix = ("fc1.weight", "fc2.weight", "proj.weight", "mat_qkv.weight", "head.weight")
    return _weight(exported, rng, lambda name: name.endswith(matrix), lambda weight: weight.half().float())


def positions_off_by_one(exported: Exported, family: Family, rng: random.Random) -> Planted | None:
    """Each token with the rotation (or learned position) of the one before it."""
    names = ("cos", "sin", "positions")
    return Planted("every call", inputs=lambda given: given | {n: given[n].roll(1, 0) for n in names if n in given})


def cache_off_by_one(exported: Exported, family: Family, rng: random.Random) -> Planted | None:
    """The past of one layer without its first position, and with its last one twice."""
    layer = rng.randrange(family.entry.depth)

    def shift(given: Inputs) -> Inputs:
        past = {n: t for n, t in given.items() if n in (f"past_k_{layer}", f"past_v_{layer}") and len(t) > 1}
        return given | {name: torch.cat((tensor[1:], tensor[-1:])) for name, tensor in past.items()}

    return Planted(f"layer {layer}", inputs=shift)


def wrong_scale_embedding(exported: Exported, family: Family, rng: random.Random) -> Planted | None:
    """One scale with the embedding of the scale before it."""
    scale = rng.randrange(1, len(family.entry.schedule(1.0)))

    def change(graph: str, weights: Weights) -> Weights:
        if graph != "constants":
            return weights
        offsets = weights["level_offsets"].clone()
        offsets[scale] = offsets[scale - 1]
        return {**weights, "level_offsets": offsets}

    return Planted(f"scale {scale}", change)


def stale_row(exported: Exported, family: Family, rng: random.Random) -> Planted | None:
    """A row that still holds another prompt: one token of its text, or (of a class) one layer's modulation."""
    layer = rng.randrange(family.entry.depth)

    def change(given: Inputs) -> Inputs:
        changed = {}
        for name in (f"text_k_{layer}", f"text_v_{layer}", f"modulation_{layer}"):
            if name in given and len(given[name]) > 1:
                changed[name] = given[name].clone()
                row = (0, slice(None), 0) if name.startswith("text") else (0,)
                changed[name][row] = given[name][(-1, *row[1:])]
        return given | changed

    return Planted(f"layer {layer}, row 0", inputs=change)


#: Kinds of errors, by name.
KINDS: Mapping[str, Callable[[Exported, Family, random.Random], Planted | None]] = {
    "transposed matrix": transposed,
    "swapped heads": swapped_heads,
    "missing bias": missing_bias,
    "positions off by one": positions_off_by_one,
    "float16 island": half_island,
    "cache off by one": cache_off_by_one,
    "wrong scale embedding": wrong_scale_embedding,
    "stale row": stale_row,
}


class Failed(Exception):
    """Raised by the first check that fails, so that a verification ends there."""


def correct(bundle: Bundle) -> dict[str, Any]:
    """Verification of engines without an error: its state, and the largest error in units of the rounding."""
    report = verify_bundle(bundle, threads=1)
    shares = {check.name: FACTOR * check.measured / check.limit for check in report.checks}
    worst = max(shares, key=lambda name: shares[name])
    return {
        "state": report.state,
        "checks": len(report.checks),
        "worst": [worst, shares[worst]],
        "failed": [asdict(check) for check in report.failures],
    }


def planted(exported: Exported, bundle: Bundle, family: Family, kind: str, seed: int, folder: Path) -> dict[str, Any]:
    """One error of a kind that counts, and the check that caught it."""
    rng, tries = random.Random(f"{kind} {seed}"), []
    for _ in range(TRIES):
        error = KINDS[kind](exported, family, rng)
        if error is None:
            break
        wrong = bundle
        if error.inputs is None:
            wrong = exported.with_weights(family, folder, error.weights)
            shutil.rmtree(wrong.folder / REFERENCE)
            shutil.copytree(bundle.folder / REFERENCE, wrong.folder / REFERENCE)
        with _with_inputs(error):
            moved = moves(wrong)
            tries.append([error.where, moved])
            if moved >= COUNTS:
                return {
                    "kind": kind,
                    "where": error.where,
                    "moved": moved,
                    "caught_by": caught_by(wrong),
                    "tries": tries,
                }
    return {"kind": kind, "where": None, "tries": tries}


@contextmanager
def _with_inputs(error: Planted) -> Generator[None]:
    """Scope in which calls of the blocks read changed inputs."""
    original, change = OnnxRuntimeEngine.run, error.inputs
    if change is None:
        yield
        return

    def run(self: OnnxRuntimeEngine, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        given = change(dict(inputs)) if self.name.startswith("blocks") else inputs
        original(self, {name: tensor.contiguous() for name, tensor in given.items()}, outputs)

    with mock.patch.object(OnnxRuntimeEngine, "run", run):
        yield


def moves(bundle: Bundle) -> float:
    """Largest move of the first case's logits, in units of their scale's rounding."""
    reference = ReferenceCases.load(bundle.path(REFERENCE))
    case, engines, worst = reference.cases[0], open_engines(bundle, torch.device("cpu"), 1), 0.0
    schedule = case.of(bundle.manifest.schedule(case.aspect_ratio))

    def measure(k: int, logits: torch.Tensor) -> None:
        nonlocal worst
        error = (logits - reference.tensors[f"{case.name}.logits_{k}"]).abs().max()
        worst = max(worst, float(error) / reference.rounding[scale_rounding(k)])

    try:
        rows = case_rows(bundle, engines, reference, case)
        run_case(bundle, engines, rows, schedule, case, reference.tokens(case, len(schedule)), None, measure)
    except NonFiniteError:
        return float("inf")
    finally:
        engines.close()
    return worst


def caught_by(bundle: Bundle) -> str | None:
    """First check that fails, or None if the engines are verified."""

    def stop(check: Check) -> None:
        if not check.passed:
            raise Failed(check.name)

    try:
        verify_bundle(bundle, threads=1, on_check=stop)
    except Failed as failed:
        return str(failed)
    return None


def study(exported: Exported, bundle: Bundle, family: Family, seed: int, folder: Path) -> dict[str, Any]:
    """Verification of a model's engines as they are, and with one error of each kind."""
    found = [planted(exported, bundle, family, kind, seed, folder) for kind in KINDS]
    return {"correct": correct(bundle), "planted": found}


def models(count: int, work: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name and study of each model: random ones, size by size, and the trained one."""
    for at, name in reversed(list(enumerate(SIZES))):
        known: list[Exported] = []
        for seed in range(at, count, len(SIZES)):
            yield f"{name}, draw {seed}", partial(random_model, name, seed, known, work)
    yield "infinity-shapes", partial(_trained, work)


def _trained(work: Path) -> dict[str, Any]:
    folder = EMBEDDED / "infinity_shapes"
    sources = Sources(folder / "transformer.safetensors", folder / "vae.safetensors", folder / "text_encoder")
    spec = find_model("infinity-shapes")
    exported = build_exported(spec, sources, None, work / "trained")
    return study(exported, exported.bundle, choose_family(spec, sources), 0, work / "wrong")


def random_model(name: str, seed: int, known: list[Exported], work: Path) -> dict[str, Any]:
    """Study of one random model.

    Args:
        known: the exported graphs of its size, if there are any; the first model of a size adds them.
    """
    size, draw = SIZES[name], Draw.of(seed)
    sources = write_weights(size, draw, work / f"sources {seed}")
    if not known:  # the first one of a size is built, and its graphs serve the others
        known.append(build_exported(spec_of(sources, draw), sources, size.chunk, work / name))
    family = family_of(sources, draw)
    bundle = known[0].with_model(family, work / "right")
    return {"draw": asdict(draw)} | study(known[0], bundle, family, seed, work / "wrong")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=40, help="number of random models")
    parser.add_argument("--output", type=result_file, default=RESULT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": {"hardware": hardware(), "software": software()}, "counts": COUNTS}
    result["models"] = json.loads(options.output.read_text())["models"] if options.output.is_file() else {}
    with tempfile.TemporaryDirectory() as work:
        for name, run in models(options.models, Path(work)):
            if name in result["models"]:
                continue
            result["models"][name] = run()
            options.output.write_text(json.dumps(result, indent=1) + "\n")
            print(name, summary(result["models"][name]), flush=True)
    return result


def summary(entry: Mapping[str, Any]) -> str:
    """One line about a model."""
    counted = [error for error in entry["planted"] if error["where"] is not None]
    missed = [error["kind"] for error in counted if error["caught_by"] is None]
    worst = entry["correct"]["worst"]
    return f"{entry['correct']['state']} ({worst[1]:.1f} roundings: {worst[0]}); {len(counted)} errors, missed {missed}"


if __name__ == "__main__":
    main()

"""Replay of a failed verification.

It saves the inputs and the expected outputs of the engine call that failed, with the Polygraphy line that repeats it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from ldp_runtime.bundle.files import REFERENCE, Bundle
from ldp_runtime.bundle.manifest import GraphEntry
from ldp_runtime.engines.base import Engine
from ldp_runtime.pipeline.open_engines import Engines, open_engines

from ldp_export.verification.case_runs import case_rows, run_case
from ldp_export.verification.cases import Case, ReferenceCases
from ldp_export.verification.checks import Check
from ldp_export.verification.verify import Report

_AT_A_SCALE = re.compile(r"(?P<case>.+), scale (?P<scale>\d+), logits")
INPUTS, EXPECTED = "inputs.json", "expected.json"


def save_replay(bundle: Bundle, report: Report, folder: Path) -> str | None:
    """Saves the engine call behind the first failed comparison of logits; returns the line that repeats it.

    Args:
        folder: folder for the inputs of the call and the logits of the reference, in Polygraphy's format.

    Returns:
        The line, or None if nothing can be replayed. Then no logits failed, Polygraphy is not installed or does not run
        the engines (PyTorch's), or the graph reads bfloat16, which Polygraphy's files cannot hold.
    """
    failed = next((match for c in report.failures if (match := _AT_A_SCALE.fullmatch(c.name))), None)
    if failed is None or bundle.manifest.backend == "torch" or not _has_polygraphy():
        return None
    check = next(c for c in report.failures if c.name == failed[0])
    reference = ReferenceCases.load(bundle.path(REFERENCE))
    case, scale = next(c for c in reference.cases if c.name == failed["case"]), int(failed["scale"])
    name, inputs = _inputs_of_call(bundle, reference, case, scale, torch.device(report.device))
    if any(tensor.dtype == torch.bfloat16 for tensor in inputs.values()):
        return None
    _save(folder, inputs, reference.tensors[f"{case.name}.logits_{scale}"])
    return replay_line(bundle, bundle.manifest.graphs[name], check, folder)


def replay_line(bundle: Bundle, graph: GraphEntry, check: Check, folder: Path) -> str:
    """Command that repeats a saved call and compares its outputs with the expected ones."""
    backend = bundle.manifest.backend
    variable = "POLYGRAPHY_USE_TENSORRT_RTX=1 " if backend == "tensorrt-rtx" else ""
    words = ["polygraphy", "run", str(bundle.path(graph.file)), "--onnxrt" if backend == "onnxruntime" else "--trt"]
    words += ["--load-inputs", str(folder / INPUTS), "--load-outputs", str(folder / EXPECTED)]
    words += ["--atol", f"{check.limit:.3g}", "--rtol", "0"]
    return variable + shlex.join(words)


def _has_polygraphy() -> bool:
    import importlib.util

    return importlib.util.find_spec("polygraphy") is not None


class _Recorder:
    """Engine that keeps a copy of the inputs of its call number `call`, counted from 0."""

    def __init__(self, engine: Engine, call: int) -> None:
        self.name, self.device = engine.name, engine.device
        self._engine, self._left = engine, call
        self.inputs: dict[str, torch.Tensor] = {}

    def run(self, inputs: Mapping[str, torch.Tensor], outputs: Mapping[str, torch.Tensor]) -> None:
        if self._left == 0:
            self.inputs = {name: tensor.detach().cpu().clone() for name, tensor in inputs.items()}
        self._left -= 1
        self._engine.run(inputs, outputs)

    def close(self) -> None:
        self._engine.close()


def _inputs_of_call(
    bundle: Bundle, reference: ReferenceCases, case: Case, scale: int, device: torch.device
) -> tuple[str, dict[str, torch.Tensor]]:
    """Name of the graph that computes the logits, and its inputs at a scale of a teacher-forced case."""
    recorders: list[_Recorder] = []

    def record(engine: Engine) -> Engine:
        recorders.append(_Recorder(engine, scale))
        return recorders[-1]

    engines = open_engines(bundle, device)
    try:
        watched: Engines = replace(engines, blocks=engines.blocks.wrapped(record))
        schedule = case.of(bundle.manifest.schedule(case.aspect_ratio))
        tokens = [t.to(device) for t in reference.tokens(case, len(schedule))]
        keep = [None if i is None else i.to(device) for i in reference.keep(case, len(schedule))]
        prompt = case_rows(bundle, watched, reference, case)
        run_case(bundle, watched, prompt, schedule, case, tokens, keep if case.pruned else None, None)
    finally:
        engines.close()
    # Failed logits are those of blocks in the bundle's precision. Quantized blocks, wrapped after them, are limited by
    # an RMS error, which Polygraphy cannot check.
    recorder = recorders[len(bundle.manifest.chunks("blocks")) - 1]
    return recorder.name, recorder.inputs


def _save(folder: Path, inputs: Mapping[str, torch.Tensor], logits: torch.Tensor) -> None:
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json

    folder.mkdir(parents=True, exist_ok=True)
    save_json([{name: tensor.numpy() for name, tensor in inputs.items()}], str(folder / INPUTS))
    results = RunResults()
    results.add([{"logits": logits.numpy()}], runner_name="reference")
    save_json(results, str(folder / EXPECTED))

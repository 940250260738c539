"""Recorded runs on disk: whatever a model computes is written as numbers that can be read again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from helpers.var_samples import VAR_MODELS
from ldp_runtime.bundle.manifest import Defaults
from ldp_runtime.errors import NonFiniteError

from ldp_export.checkpoints.var import load_var, load_var_vae
from ldp_export.verification.cases import ReferenceCases, read_runs
from ldp_export.verification.recording.var import record_var_cases


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1e-5), (1, 0.0), (3, 0.5)])
def test_runs_without_a_choice_are_read_again(tmp_path: Path, top_k: int, top_p: float) -> None:
    """Filters that leave one code make every draw certain: no other code is at any distance."""
    sources = VAR_MODELS["one phi, three scales"].write(tmp_path)
    transformer, vae = load_var(sources.transformer), load_var_vae(sources.vae)
    with torch.no_grad():
        transformer.head.weight.mul_(20)
    defaults = Defaults(guidance=1.5, temperature=1.0, top_k=top_k, top_p=top_p)
    recorded = record_var_cases(transformer, vae, defaults)
    recorded.save(tmp_path / "runs")
    cases, _ = read_runs(tmp_path / "runs")
    assert cases == recorded.cases
    assert all(case.margin is None or math.isfinite(case.margin) for case in cases)


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_a_precision_that_overflows_is_refused_before_anything_is_written(tmp_path: Path, error: float) -> None:
    with pytest.raises(NonFiniteError, match="logits_3") as raised:
        ReferenceCases((), {}, {"logits_0": 1e-5, "logits_3": error}).save(tmp_path / "runs")
    assert "--precision float32" in str(raised.value.hint)
    assert not (tmp_path / "runs").exists()

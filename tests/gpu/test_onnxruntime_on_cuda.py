"""ONNX Runtime's CUDA provider: the same graphs, bound by pointer, and nothing on the CPU behind one's back."""

from __future__ import annotations

import pytest
import torch
from helpers.samples import random_texts
from ldp_runtime import LHEP, SATS, Pipeline, Policy
from ldp_runtime.bundle.files import Bundle

from ldp_export.verification.verify import verify_bundle

onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has no CUDA provider (pip install onnxruntime-gpu)",
)


@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_bundle_8b"])
def test_verifies_on_the_gpu(name: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    report = verify_bundle(bundle, "cuda")
    assert report.state == "verified", [check for check in report.checks if not check.passed]


def test_draws_with_and_without_pruning(small_bundle: Bundle) -> None:
    texts = random_texts([5, 9])
    with Pipeline.load(small_bundle, device="cuda") as pipe:
        full = pipe(prompt_embeds=texts, seed=3, output_type="latent").images
        again = pipe(prompt_embeds=texts, seed=3, output_type="latent").images
        pruned = pipe(prompt_embeds=texts, seed=3, policy=Policy(LHEP(), SATS()), output_type="latent")
    assert torch.equal(full, again)
    assert all(trace.tokens < trace.tokens_full for trace in pruned.traces)

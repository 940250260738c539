"""Explained pictures: their titles, and the full model beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from ldp_calibration.drawing import pyplot
from ldp_runtime import Pipeline, parse_policy
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.pipeline.trace import Trace
from ldp_runtime.pruning.parse import policy_text

from ldp_export.inspection.explain import Explanation, draw_counts, explain, title


@pytest.mark.parametrize(
    ("policy", "words"),
    [("ld", "ld: "), ("ld:rho=0.4", "ld:rho=0.4: "), ("none:stop=4", "none:stop=4: ")],
)
def test_titles_say_the_policy_in_its_shortest_words(policy: str, words: str) -> None:
    assert title(explained(policy)).startswith(words)


def test_long_policies_are_broken_into_lines() -> None:
    policy = "top-p:p=0.5,score=variance,fill=repeat,scales=4+5,detail=0.5,delta=0.3,gap=l2,then=reuse,skip_last=1"
    lines = title(explained(policy)).splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) < 45  # as wide as a picture


def test_the_full_model_is_beside_a_bundles_default_policy(small_bundle: Bundle) -> None:
    manifest = small_bundle.manifest
    defaults = manifest.defaults.model_copy(update={"policy": policy_text(parse_policy("none:skip_last=2"))})
    with Pipeline.load(replace(small_bundle, manifest=manifest.model_copy(update={"defaults": defaults}))) as pipe:
        explanation = explain(pipe, "a red circle", None, seed=1)
        full = pipe("a red circle", seed=1, policy="none").images[0]
    assert len(explanation.trace.scales) == explanation.trace.scales_full - 2
    assert np.array_equal(explanation.full, full)


def explained(policy: str) -> Explanation:
    image = np.zeros((8, 8, 3), np.uint8)
    trace = Trace(0, policy_text(parse_policy(policy)), (), 7, 521, 0.0)
    return Explanation("a red circle", (), image, image, trace, trace)


@pytest.mark.parametrize(("guidance", "rows"), [(4.0, 2), (1.0, 1)])
def test_bars_of_the_full_model_are_what_it_computes(small_bundle: Bundle, guidance: float, rows: int) -> None:
    """Without guidance there is one branch, and scales that the policy skips were computed."""
    with Pipeline.load(small_bundle) as pipe:
        explanation = explain(pipe, "a red circle", "none:skip_last=2", seed=1, guidance=guidance)
    axis = pyplot().figure().subplots()
    draw_counts(axis, explanation)
    grey = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in axis.containers[0]}
    assert grey == {k: rows * tokens for k, tokens in enumerate(small_bundle.manifest.schedule().tokens)}

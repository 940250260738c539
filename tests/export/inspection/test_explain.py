"""Titles of explained pictures."""

from __future__ import annotations

import numpy as np
import pytest
from ldp_runtime import parse_policy
from ldp_runtime.pipeline.trace import Trace
from ldp_runtime.pruning.parse import policy_text

from ldp_export.inspection.explain import Explanation, title


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


def explained(policy: str) -> Explanation:
    image = np.zeros((8, 8, 3), np.uint8)
    trace = Trace(0, policy_text(parse_policy(policy)), (), 7, 521, 0.0)
    return Explanation("a red circle", (), image, image, trace)

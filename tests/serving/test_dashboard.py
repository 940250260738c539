"""The dashboard: every query names metrics and labels that the server has, and every metric is in the docs."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator

import pytest
from helpers.serving import Inbox, image
from helpers.tree import ROOT
from ldp_runtime import Pipeline
from ldp_serving.errors import QueueFull
from ldp_serving.limits import Limits
from ldp_serving.metrics import Metrics
from ldp_serving.model import open_model
from prometheus_client.parser import text_string_to_metric_families

DASHBOARD = ROOT / "deploy/grafana/ldp-export.json"
DOCS = ROOT / "docs/guide/operating.md"
NAME = re.compile(r"\b(ldp_\w+)(\{[^}]*\})?")
LABELS = re.compile(r"(?:by|label_values)\s*\(([^)]*)\)")


def queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


@pytest.fixture(scope="module")
def samples(small_pipe: Pipeline) -> Iterator[dict[str, set[str]]]:
    """Labels of each sample of a server that has drawn a picture, with a preview, and refused a request."""
    metrics = Metrics()
    counts = metrics.of_model("small")
    model = open_model(small_pipe, "small", Limits(), counts, previews=0)
    try:
        metrics.follow(model)
        inbox = Inbox()
        model.scheduler.submit([image(small_pipe)], inbox, partials=1)
        inbox.ends()
        counts.request("completed", 1.0)
        counts.refused(QueueFull("full"))
        counts.encoded("png", 0.1)
        counts.compared(40.0)
        found: dict[str, set[str]] = defaultdict(set)
        for family in text_string_to_metric_families(metrics.text().decode()):
            for sample in family.samples:
                found[sample.name] |= set(sample.labels)
        yield found
    finally:
        model.scheduler.close()


@pytest.mark.parametrize("query", queries())
def test_queries_name_what_is_there(samples: dict[str, set[str]], query: str) -> None:
    used = NAME.findall(query)
    assert used
    for name, chosen in used:
        assert name in samples
        assert set(re.findall(r"(\w+)\s*[=!]", chosen)) <= samples[name]
    grouped = {label.strip() for group in LABELS.findall(query) for label in group.split(",")}
    assert grouped <= set.union(*(samples[name] for name, _ in used))
    assert query.count("(") == query.count(")")


def test_every_metric_is_documented(samples: dict[str, set[str]]) -> None:
    text = DOCS.read_text()
    bare = {re.sub(r"_(total|bucket|sum|count|created)$", "", name) for name in samples}
    assert not {name for name in bare if name not in text}


def test_every_metric_of_the_docs_is_there(samples: dict[str, set[str]]) -> None:
    assert not {name for name in re.findall(r"`(ldp_\w+)`", DOCS.read_text()) if name not in samples} - {
        name for name in re.findall(r"`(ldp_\w+)`", DOCS.read_text()) if f"{name}_bucket" in samples
    }

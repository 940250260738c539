"""Pages of metrics of several replicas as one, in which each sample says whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families


class _Joined:
    """Metrics of all pages, with a label `replica` that counts them."""

    def __init__(self, pages: Sequence[str]) -> None:
        self._pages = pages

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for number, page in enumerate(self._pages):
            for family in text_string_to_metric_families(page):
                whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                whole.samples += [s._replace(labels=s.labels | {"replica": str(number)}) for s in family.samples]
        return families.values()


def joined(pages: Sequence[str]) -> bytes:
    """One page of the pages of several replicas."""
    registry = CollectorRegistry()
    registry.register(_Joined(pages))
    return generate_latest(registry)

"""Seeded odd requests, always the same ones."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from ldp_runtime.bundle.files import Bundle

from fuzz import requests, samples


@pytest.fixture(scope="module", autouse=True)
def _place(tmp_path_factory: pytest.TempPathFactory, small_bundle: Bundle) -> None:
    place: Path = tmp_path_factory.mktemp("fuzz")
    assert small_bundle.root is not None
    (place / "infinity_bundle").symlink_to(small_bundle.root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(samples.FOLDER, str(place))
        samples.folder.cache_clear()
        samples.folder()


def test_requests_are_refused_or_drawn() -> None:
    cases = list(itertools.islice(requests.cases(1), 60))
    outcomes = [(case, requests.run(case)) for case in cases]
    assert [outcome for outcome in outcomes if outcome[1] != "right"] == []


def test_cases_are_the_same_in_every_run() -> None:
    first, again = (list(map(repr, itertools.islice(requests.cases(7), 20))) for _ in range(2))
    assert first == again

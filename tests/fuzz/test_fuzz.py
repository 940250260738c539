"""A few cases of every fuzzer, always the same ones; `make fuzz` tries more."""

from __future__ import annotations

import itertools
import json
from importlib import import_module
from pathlib import Path

import pytest
from ldp_runtime.bundle.files import Bundle

from fuzz import driver, samples
from fuzz.driver import Tally, fuzz, load, save, tried
from ldp_export.checkpoints.sources import Sources

#: Cases of each kind: about five seconds each on an idle machine.
CASES = {"bundles": 25, "checkpoints": 60, "listings": 25, "kills": 4, "requests": 60, "evaluations": 12}


@pytest.fixture(scope="module", autouse=True)
def _place(tmp_path_factory: pytest.TempPathFactory, small_bundle: Bundle, small_sources: Sources) -> None:
    """Folder of the samples, in which what the session has built lies already."""
    place = tmp_path_factory.mktemp("fuzz")
    assert small_bundle.root is not None
    (place / "infinity_bundle").symlink_to(small_bundle.root)
    (place / "infinity_sources").symlink_to(small_sources.vae.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(samples.FOLDER, str(place))
        samples.folder()  # remembered by this process


@pytest.mark.parametrize("kind", CASES)
def test_nothing_wrong_is_accepted_and_nothing_right_refused(kind: str) -> None:
    cases = itertools.islice(import_module(f"fuzz.{kind}").cases(0), CASES[kind])
    outcomes = [(case, *tried(kind, case)) for case in cases]
    assert [outcome for outcome in outcomes if outcome[1] != "right"] == []


def test_cases_are_the_same_in_every_run() -> None:
    for kind in CASES:
        first, again = (list(itertools.islice(import_module(f"fuzz.{kind}").cases(7), 20)) for _ in range(2))
        assert list(map(repr, first)) == list(map(repr, again))


class TestDriver:
    @pytest.fixture
    def kind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        """Cases that go well, go wrong, raise, die and hang, one after the other."""
        (tmp_path / "made_up.py").write_text(
            "import itertools, os, time\n"
            "def cases(seed): return itertools.cycle(range(5))\n"
            "def run(case):\n"
            "    if case == 2: raise KeyError('odd')\n"
            "    if case == 3: os._exit(9)\n"
            "    if case == 4: time.sleep(600)\n"
            "    return ('right', 'wrong accepted')[case]\n"
        )
        import fuzz as package

        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        monkeypatch.setattr(driver, "SECONDS_PER_CASE", 5.0)
        monkeypatch.setattr(
            driver, "_PROGRAM", f"import fuzz; fuzz.__path__.append({str(tmp_path)!r}); {driver._PROGRAM}"
        )
        return "made_up"

    def test_counts_add_up_over_runs(self, kind: str, tmp_path: Path) -> None:
        path = tmp_path / "counts.json"
        for _ in range(2):
            tally = load(path, kind, 0)
            for _ in fuzz(kind, 3, tally):
                save(path, kind, tally)
        known = json.loads(path.read_text())[kind]
        assert known["done"] == 6
        assert known["outcomes"] == {"right": 2, "wrong accepted": 1, "untyped": 2, "hang": 1}
        assert [each["case"] for each in known["wrong"]] == ["1", "2", "3", "4"]
        assert "KeyError" in known["wrong"][1]["detail"]
        assert load(path, kind, 1) == Tally(1)

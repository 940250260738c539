"""Two results compared: what became slower is found, noise is not, and what cannot be compared is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from ldp_runtime.errors import ConfigError

from ldp_export.bench.compare import compare
from ldp_export.bench.older_results import OLDER_SCHEMA
from ldp_export.bench.read_result import read_result
from ldp_export.bench.result import SCHEMA
from ldp_export.cli import main
from ldp_export.cli.bench_compare import command


def result(times: dict[str, float], seed: int, drift: float = 1.0) -> dict:
    """Twelve prompts of different length, five repetitions with 5 % of noise."""
    rng = np.random.default_rng(seed)
    length = 1 + np.arange(12) / 12
    candidates = []
    for name, ms in times.items():
        noise = rng.normal(1, 0.05, (12, 5))
        samples = [
            {
                "group": g,
                "repetition": r,
                "wall_ms": float(ms * drift * length[g] * noise[g, r]),
                "text_ms": 1.0,
                "blocks_ms": 20 * float(noise[g, r]),
            }
            for g in range(12)
            for r in range(5)
        ]
        candidates.append({"name": name, "batch": 1, "samples": samples})
    return {
        "schema": SCHEMA,
        "hardware": {"cpu": "A", "instructions": "avx2", "cores_usable": 2, "gpu": None, "os": "Linux"},
        "settings": {"threads": 2, "device": "cpu", "scope": "prompt-to-image", "prompts": ["a"], "seed": 0},
        "model": {"name": "m", "size": "0.06M"},
        "candidates": candidates,
    }


def test_noise_is_no_regression():
    verdicts = [
        change.verdict
        for seed in range(10)
        for change in compare(result({"engines": 100}, seed), result({"engines": 100}, 100 + seed))
    ]
    assert verdicts.count("no difference shown") >= 8


def test_older_results_are_compared_under_the_names_of_today():
    older = result({"engines + ld": 100, "engines + ld-paper": 100}, 0) | {"schema": OLDER_SCHEMA}
    changes = compare(older, result({"engines + ld": 50, "engines + ld-fast": 100, "engines + ld-paper": 100}, 1))
    assert [change.name for change in changes] == ["engines + ld-fast", "engines + ld-paper"]


def test_regression_is_found():
    (change,) = compare(result({"engines": 100}, 0), result({"engines": 110}, 1))
    assert change.verdict == "slower"
    assert change.low < 1.1 < change.high
    (change,) = compare(result({"engines": 100}, 0), result({"engines": 90}, 1))
    assert change.verdict == "faster"


def test_within_the_scope():
    """The image took a third longer, the blocks did not."""
    before, after = result({"engines": 100}, 0), result({"engines": 133}, 1)
    for each in (before, after):
        each["settings"]["scope"] = "blocks"
    (change,) = compare(before, after)
    assert change.verdict == "no difference shown"
    assert change.before_ms == pytest.approx(20, abs=2)


def test_a_slower_machine_is_not_a_regression():
    """All candidates took a fifth longer, eager PyTorch too."""
    before = result({"eager": 200, "engines": 100}, 0)
    eager, engines = compare(before, result({"eager": 200, "engines": 100}, 1, drift=1.2))
    assert not eager.corrected
    assert eager.verdict == "slower"
    assert engines.corrected
    assert engines.ratio == pytest.approx(1, abs=0.05)
    assert engines.verdict == "no difference shown"


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("hardware", "cpu", "B"),
        ("hardware", "instructions", "avx2, avx512, vnni"),
        ("hardware", "gpu", "H100"),
        ("settings", "threads", 1),
    ],
)
def test_other_hardware_or_settings_are_refused(group: str, key: str, value: object):
    before = result({"engines": 100}, 0)
    after = copy.deepcopy(before)
    after[group][key] = value
    with pytest.raises(ConfigError, match=rf"differ in {group}\.{key}"):
        compare(before, after)


def test_what_is_no_result_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no result of"):
        compare({}, {})
    with pytest.raises(ConfigError, match="share no candidate"):
        compare(result({"a": 1}, 0), result({"b": 1}, 0))
    file = tmp_path / "a.json"
    file.write_text("nonsense")
    done = CliRunner().invoke(command, [str(file), str(file)])
    assert isinstance(done.exception, ConfigError)
    assert "cannot read the result" in str(done.exception)
    assert CliRunner().invoke(command, []).exit_code == 2


def test_command_line(tmp_path: Path):
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, ms in zip(paths, (100, 130), strict=True):
        path.write_text(json.dumps(result({"eager": 200, "engines": ms}, ms)))
    arguments = [*map(str, paths)]
    done = CliRunner().invoke(command, [*arguments, "--json"], catch_exceptions=False)
    assert [change["verdict"] for change in json.loads(done.output)][1] == "slower"
    table = CliRunner().invoke(command, arguments, catch_exceptions=False).output
    assert "slower" in table
    assert "drift is taken out" in table


def damaged(change: Callable[[dict], object]) -> dict:
    made = result({"eager": 200, "engines": 100}, 0)
    change(made)
    return made


def sample(made: dict) -> dict:
    return made["candidates"][1]["samples"][3]


DAMAGES: dict[str, Callable[[dict], object]] = {
    "a time that is NaN": lambda made: sample(made).update(wall_ms=float("nan")),
    "a part that is NaN": lambda made: sample(made).update(text_ms=float("nan")),
    "an infinite time": lambda made: sample(made).update(blocks_ms=float("inf")),
    "a negative time": lambda made: sample(made).update(wall_ms=-1.0),
    "no time at all": lambda made: sample(made).update(wall_ms=0.0),
    "text for all of the time": lambda made: (
        sample(made).update(text_ms=sample(made)["wall_ms"]),
        made["settings"].update(scope="image"),
    ),
    "a time as text": lambda made: sample(made).update(wall_ms="3"),
    "a time as a truth value": lambda made: sample(made).update(wall_ms=True),
    "a time of 400 digits": lambda made: sample(made).update(wall_ms=10**400),
    "a sample without its time": lambda made: sample(made).pop("wall_ms"),
    "a sample without its prompt": lambda made: sample(made).pop("group"),
    "a group that is a list": lambda made: sample(made).update(group=[1]),
    "no samples": lambda made: made["candidates"][0].update(samples=[]),
    "no candidates": lambda made: made.update(candidates=[]),
    "candidates that are none": lambda made: made.update(candidates=[3]),
    "a candidate twice": lambda made: made["candidates"].append(made["candidates"][0]),
    "no settings": lambda made: made.pop("settings"),
    "settings that are a list": lambda made: made.update(settings=[]),
    "no hardware": lambda made: made.pop("hardware"),
    "no model": lambda made: made.update(model=None),
    "no scope": lambda made: made["settings"].pop("scope"),
    "an unknown scope": lambda made: made["settings"].update(scope="all"),
    "a format that is a list": lambda made: made.update(schema=[SCHEMA]),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_results_are_refused(name: str) -> None:
    """NaN compares as neither less nor greater, and would pass for "no difference shown"."""
    good, bad = result({"eager": 200, "engines": 100}, 0), damaged(DAMAGES[name])
    for pair in ((good, bad), (bad, good), (bad, bad)):
        with pytest.raises(ConfigError, match=r"damaged|no result of"):
            compare(*pair)


def test_results_without_a_common_prompt_are_refused() -> None:
    before, after = result({"engines": 100}, 0), result({"engines": 100}, 0)
    for each in after["candidates"][0]["samples"]:
        each["group"] += 100
    with pytest.raises(ConfigError, match="share no candidate"):
        compare(before, after)


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "\x00"])
def test_files_that_are_no_results(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    for path in (tmp_path / "a.json", tmp_path, tmp_path / "absent.json"):
        with pytest.raises(ConfigError, match="cannot read the result"):
            read_result(path)


def test_older_form(tmp_path: Path):
    """`bench --compare` is a verb of its own today; it still answers, and says so on stderr."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps(result({"eager": 200, "engines": 100}, 1)))
    done = CliRunner().invoke(main, ["bench", "--compare", str(path), str(path), "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)) == 2
    assert "bench-compare A.json B.json" in done.stderr

"""True shapes without a checkpoint, and the policy of given numbers that goes with them."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from ldp_runtime.bundle.saved_policies import SavedPolicy
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.parse import describe, parse_policy
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.pruning.stopping import StopAt
from ldp_runtime.pruning.tokens import TopK
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.bench.given_shares import calibrated, told
from ldp_export.bench.random_weights import given_policies, random_bundles, smaller
from ldp_export.cli import main
from ldp_export.cli.bench import command
from ldp_export.models.registry import InfinitySpec, find_model

SCHEDULE = ScaleSchedule.of_size("1M")


def test_smaller_model_keeps_its_proportions():
    spec = smaller(find_model("infinity-2b"), 2, 512)
    assert isinstance(spec, InfinitySpec)
    assert (spec.transformer.depth, spec.transformer.heads, spec.transformer.ffn) == (2, 4, 2048)
    assert spec.transformer.head_dim == find_model("infinity-2b").transformer.head_dim
    assert (spec.vae.base_channels, spec.vae.bits) == (32, 32)
    assert spec.name == "infinity-2b-depth2-width512"
    assert smaller(find_model("infinity-8b"), None, None) == find_model("infinity-8b")


@pytest.mark.parametrize(("depth", "width"), [(-1, None), (None, 100), (2, 64)])
def test_impossible_sizes(depth: int | None, width: int | None):
    with pytest.raises(ConfigError, match="--width a multiple of 128"):
        smaller(find_model("infinity-2b"), depth, width)


def test_what_the_model_does_not_draw_is_refused_before_weights_are_written(tmp_path: Path):
    with pytest.raises(ConfigError, match="one size only"):
        random_bundles("var-d16", tmp_path, size="1M", depth=1, width=64)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "40"], "takes 80 rows"),
        (["--class", "3"], "draws texts, not classes"),
    ],
)
def test_what_cannot_be_served_is_refused_before_weights_are_written(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ldp_export.bench.random_weights.write_checkpoint", lambda *_: pytest.fail("written"))
    done = CliRunner().invoke(main, ["bench", "--random-weights", "--model", "infinity-2b", *arguments])
    assert done.exit_code == ConfigError.exit_code
    assert message in done.output


def given(share: tuple[float, ...], stop: int | None = None, skip_last: int = 0) -> Policy:
    """What stands in for a policy where weights are random."""
    return Policy(TopK(share, score="random", fill="zero"), None if stop is None else StopAt(stop), skip_last)


def test_given_shares():
    policy = given((0.5, 0.25, 1.0), 9, 1)
    policy.check(SCHEDULE)
    assert policy.scales_to_run(SCHEDULE) == 12
    assert policy.prunes(SCHEDULE) == (10, 11)
    assert policy.guidance is not None
    assert not policy.guidance.stops_after([], 8, SCHEDULE)
    assert policy.guidance.stops_after([], 9, SCHEDULE)
    assert parse_policy(describe(policy)) == policy


def test_given_shares_that_make_no_sense():
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        given((1.5,))
    with pytest.raises(ConfigError, match="never pruned"):
        given((0.5,) * 13).check(SCHEDULE)
    with pytest.raises(ConfigError, match="no scale 13"):
        given((0.5,), 13).check(SCHEDULE)


def test_policies_in_words_can_be_read():
    words = given_policies((0.5, 0.4, 0.3), 9)
    policies = [parse_policy(text) for text in words]
    assert policies[:2] == [given((0.5, 0.4, 0.3), 9), given((0.5, 0.4, 0.3), 9, skip_last=2)]
    older = ("given:keep=0.5+0.4+0.3,stop_after=9", "given:keep=0.5+0+0,stop_after=9")
    assert [parse_policy(text) for text in older] == [policies[0], given((0.5, 0, 0), 9, skip_last=2)]
    assert len(policies) == 5
    assert len(given_policies((0.5,), None)) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ["--random-weights"],
        ["bundle", "--random-weights", "--model", "infinity-2b"],
        ["bundle", "--model", "infinity-2b"],
        ["--random-weights", "--model", "infinity-2b", "--keep", "half"],
        ["--random-weights", "--model", "infinity-2b", "--keep", "2"],
        ["--random-weights", "--model", "no-such-model"],
        ["--random-weights", "--model", "infinity-2b", "--keep", "0.5", "--keep-from", "p.json"],
        ["--random-weights", "--model", "infinity-2b", "--keep-from", "no-such-file.json"],
        ["--random-weights", "--model", "infinity-2b", "--policy", "none:skip_last=1", "--keep", "0.5"],
        ["bundle", "--keep", "0.5"],
        ["bundle", "--int8"],
    ],
)
def test_senseless_combinations(arguments: list[str]):
    assert isinstance(CliRunner().invoke(command, arguments).exception, ConfigError)


def profile(tmp_path: Path, policy: str, kept: list[float], stop_rate: float = 1.0) -> Path:
    evidence = {"kept_share_per_scale": kept, "stop_rate": stop_rate, "model": "m", "held_out_prompts": 8}
    path = tmp_path / "profile.json"
    path.write_text(SavedPolicy(name="p", policy=policy, digest="0", budget="", evidence=evidence).model_dump_json())
    return path


def test_shares_of_a_profile(tmp_path: Path):
    """The paper's scales of the 1M schedule are 10 to 12, and the branch may stop from 9 on."""
    found = calibrated(profile(tmp_path, "ld", [1.0] * 5 + [0.6, 0.4]), SCHEDULE)
    assert (found.keep, found.stop_scale) == ((0.6, 0.6, 0.4), 9)
    assert found.origin.startswith("from the profile 'p' (ld) of m")
    assert calibrated(profile(tmp_path, "ld", [1.0, 0.6, 0.4], stop_rate=0.1), SCHEDULE).stop_scale is None
    assert calibrated(profile(tmp_path, "ld-skip-2", [1.0, 0.5]), SCHEDULE).keep == (0.5, 0, 0)
    for policy, kept in (("skip:count=1", [1.0, 1.0]), ("ld", [1.0, 1.0]), ("ld", [])):
        with pytest.raises(ConfigError, match="says of no share"):
            calibrated(profile(tmp_path, policy, kept), SCHEDULE)


def test_shares_of_the_committed_study():
    found = calibrated(Path(__file__).parents[3] / "benchmarks/results/infinity-shapes-ablation.json", SCHEDULE)
    assert len(found.keep) == 3
    assert all(0 < share < 1 for share in found.keep)
    assert "of infinity-shapes" in found.origin


def test_shares_are_assumed_where_none_are_told():
    assert "assumed" in told(None, 6).origin
    assert told("0.5,0", 6).keep == (0.5, 0)


def test_small_random_model_end_to_end(tmp_path: Path):
    """Shares of a profile; it stops after scale 4 of this schedule at the earliest."""
    source = profile(tmp_path, "ld", [1.0] * 5 + [0.5, 0.3])
    arguments = ["--random-weights", "--model", "infinity-125m", "--depth", "1", "--width", "96"]
    arguments += ["--keep-from", str(source), "--repeats", "1", "--warmup", "0", "--threads", "1", "--json", "--int8"]
    arguments += ["--share-engines"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    result = json.loads(done.stdout)
    assert result["model"]["random_weights"] is True
    assert any("weights are random" in note for note in result["notes"])
    assert any("from the profile 'p'" in note for note in result["notes"])
    given = "top-k:share=0.5+0.3+,score=random,fill=zero,stop=4"
    fields = "top-k:fill=zero,scales=none,detail=0.75,share=0.5+0.3,score=random,stop=4,then=conditional"
    assert result["policies"][given] == fields
    pruned = next(c for c in result["candidates"] if c["policy"] == given)
    assert pruned["psnr_db"] is None
    rounded = next(c for c in result["candidates"] if c["name"] == "onnxruntime, int8 last scales")
    assert rounded["precision_psnr_db"] is None
    assert [round(scale["tokens"]) for scale in pruned["scales"]][-2:] == [72, 77]
    assert [scale["rows"] for scale in pruned["scales"]][-2:] == [1, 1]

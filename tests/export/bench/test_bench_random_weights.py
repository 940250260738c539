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
from ldp_export.bench.plan import plan_bench
from ldp_export.bench.random_weights import given_policies, random_spec, smaller, write_random
from ldp_export.bench.worker.options import BenchOptions
from ldp_export.building.plan import CHECKPOINT, check_output
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "var-d16", "--size", "1M"], "one size only"),
        (["--model", "infinity-2b", "--depth", "0"], "--depth must be positive"),
        (["--model", "infinity-2b", "--backend", "onnxruntime", "--precision", "bfloat16"], "no bfloat16"),
        (["--model", "no-such-model"], "unknown model"),
        (["--model", "infinity-2b", "--keep-from", "no-such-file.json"], "is not a policy profile"),
        (["--model", "infinity-2b", "--weights", "w"], "reads no --weights"),
        ([], "takes the shape of a --model"),
    ],
)
def test_what_cannot_be_built_is_refused_before_weights_are_written(arguments: list[str], message: str, tmp_path: Path):
    done = CliRunner().invoke(main, ["build", "--random-weights", *arguments, "--output", str(tmp_path / "b")])
    assert done.exit_code == ConfigError.exit_code, done.output
    assert message in done.output
    assert "hint:" in done.output
    assert not list(tmp_path.iterdir())


def test_sizes_belong_to_random_weights(tmp_path: Path):
    done = CliRunner().invoke(main, ["build", "--depth", "2", "--output", str(tmp_path / "b")])
    assert done.exit_code == ConfigError.exit_code
    assert "add --random-weights" in done.output


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
        with pytest.raises(ConfigError, match="prunes no tokens"):
            calibrated(profile(tmp_path, policy, kept), SCHEDULE)


def test_shares_of_the_committed_study():
    found = calibrated(Path(__file__).parents[3] / "benchmarks/results/infinity-shapes-ablation.json", SCHEDULE)
    assert len(found.keep) == 3
    assert all(0 < share < 1 for share in found.keep)
    assert "of infinity-shapes" in found.origin


def test_shares_are_assumed_where_none_are_told():
    assert "assumed" in told(None, 6).origin
    assert told("0.5,0", 6).keep == (0.5, 0)


@pytest.fixture(scope="module")
def random_bundles(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One model in float32 and with quantized scales; its branch may stop after scale 4 at the earliest."""
    folder = tmp_path_factory.mktemp("random")
    source = profile(folder, "ld", [1.0] * 5 + [0.5, 0.3])
    shape = [
        "--random-weights",
        "--model",
        "infinity-125m",
        "--depth",
        "1",
        "--width",
        "96",
        "--keep-from",
        str(source),
    ]
    made = [str(folder / "plain"), str(folder / "int8")]
    for output, kind in zip(made, ([], ["--quantize", "int8"]), strict=True):
        done = CliRunner().invoke(main, ["build", *shape, *kind, "--output", output])
        assert done.exit_code == 0, done.output
    return made


def test_a_bundle_of_random_weights_is_measured_without_options(random_bundles: list[str]):
    """The checkpoint and the shares lie beside it."""
    brief = ["--repeats", "1", "--warmup", "0", "--threads", "1", "--share-engines", "--json"]
    done = CliRunner().invoke(command, [*random_bundles, *brief], catch_exceptions=False)
    result = json.loads(done.stdout)
    assert result["model"]["random_weights"] is True
    assert result["model"]["name"] == "infinity-125m-depth1-width96-random"
    assert any("weights are random" in note for note in result["notes"])
    assert any("from the profile 'p'" in note for note in result["notes"])
    given = "top-k:share=0.5+0.3+,score=random,fill=zero,stop=4"
    fields = "top-k:fill=zero,scales=none,detail=0.75,share=0.5+0.3,score=random,stop=4,then=conditional"
    assert result["policies"][given] == fields
    assert "eager" in {c["name"] for c in result["candidates"]}
    pruned = next(c for c in result["candidates"] if c["policy"] == given)
    assert pruned["psnr_db"] is None
    rounded = next(c for c in result["candidates"] if c["name"] == "onnxruntime, int8 last scales")
    assert rounded["precision_psnr_db"] is None
    assert [round(scale["tokens"]) for scale in pruned["scales"]][-2:] == [72, 77]
    assert [scale["rows"] for scale in pruned["scales"]][-2:] == [1, 1]


def test_other_policies_than_the_given_ones(random_bundles: list[str]):
    plan = plan_bench([Path(random_bundles[0])], BenchOptions(policies=("none:skip_last=1",)))
    assert plan.random is not None
    assert not plan.has_given_policies
    assert (plan.policies, plan.prompt_count) == (("none:skip_last=1",), 2)


def test_a_built_checkpoint_is_not_written_again(random_bundles: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ldp_export.bench.random_weights.write_checkpoint", lambda *_: pytest.fail("written"))
    shape = ["--random-weights", "--model", "infinity-125m", "--depth", "1", "--width", "96"]
    done = CliRunner().invoke(main, ["build", *shape, "--output", random_bundles[1], "--quantize", "int8", "--json"])
    assert done.exit_code == 0, done.output
    assert "reused" in done.output


def test_a_folder_of_ones_own_is_not_taken_for_the_checkpoint(tmp_path: Path):
    kept = tmp_path / "b" / CHECKPOINT / "mine.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    shape = ["--random-weights", "--model", "infinity-125m", "--depth", "1", "--width", "96"]
    refused = CliRunner().invoke(main, ["build", *shape, "--output", str(tmp_path / "b")])
    assert refused.exit_code == ConfigError.exit_code
    assert f"holds other things: {CHECKPOINT}" in refused.output
    assert kept.read_text() == "mine"


def test_a_checkpoint_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = random_spec(find_model("infinity-125m"), 1, 96)
    with monkeypatch.context() as patched:
        patched.setattr("ldp_export.checkpoints.synthetic.write_shards", _interrupted)
        patched.setattr("ldp_export.checkpoints.synthetic.write_tensors", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_random(spec, told(None, None), tmp_path)
    assert not list(tmp_path.iterdir())
    write_random(spec, told(None, None), tmp_path).check()
    check_output(tmp_path)


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_older_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`bench --random-weights` builds a bundle and measures it; its options go where they belong today."""
    ran: list[list[str]] = []
    monkeypatch.setattr("ldp_export.cli.build.command.main", lambda args, **_: ran.append(["build", *args]))
    monkeypatch.setattr(command, "main", lambda args, **_: ran.append(["bench", *args]))
    older = ["--random-weights", "--model", "infinity-2b", "--depth", "2", "--pn", "0.25M", "--int8", "--keep", "0.5"]
    done = CliRunner().invoke(main, ["bench", *older, "--stop-scale", "6", "--repeats", "1"])
    assert done.exit_code == 0, done.output
    assert "build --random-weights makes a bundle" in done.stderr
    first, second, measured = ran
    assert first[:-1] == [
        "build",
        "--random-weights",
        "--model",
        "infinity-2b",
        "--depth",
        "2",
        "--size",
        "0.25M",
        "--output",
    ]
    assert second[8:10] == ["--quantize", "int8"]
    assert measured[1:5] == [first[-1], second[-1], "--repeats", "1"]
    assert measured[5:7] == ["--policy", "top-k:share=0.5+,score=random,fill=zero,stop=6"]

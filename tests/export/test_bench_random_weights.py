"""True shapes without a checkpoint, and the policy of given numbers that goes with them."""

import json

import pytest
from click.testing import CliRunner
from ldp_runtime.errors import ConfigError
from ldp_runtime.pruning.given import GivenShares
from ldp_runtime.pruning.names import describe, parse_policy
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.bench.random_weights import given_policies, smaller
from ldp_export.cli.bench import command
from ldp_export.models.registry import ModelSpec, find_model

SCHEDULE = ScaleSchedule.of_size("1M")


def test_smaller_model_keeps_its_proportions():
    spec = smaller(find_model("infinity-2b"), 2, 512)
    assert isinstance(spec, ModelSpec)
    assert (spec.transformer.depth, spec.transformer.heads, spec.transformer.ffn) == (2, 4, 2048)
    assert spec.transformer.head_dim == find_model("infinity-2b").transformer.head_dim
    assert (spec.vae.base_channels, spec.vae.bits) == (32, 32)
    assert spec.name == "infinity-2b-depth2-width512"
    assert smaller(find_model("infinity-8b"), None, None) == find_model("infinity-8b")


@pytest.mark.parametrize(("depth", "width"), [(-1, None), (None, 100), (2, 64)])
def test_impossible_sizes(depth: int | None, width: int | None):
    with pytest.raises(ConfigError, match="--width a multiple of 128"):
        smaller(find_model("infinity-2b"), depth, width)


def test_given_shares():
    policy = GivenShares((0.5, 0.25, 0.0), stop_after=9)
    policy.check(SCHEDULE)
    assert policy.scales_to_run(SCHEDULE) == 12
    assert policy.prunes(SCHEDULE) == (10, 11)
    assert not policy.stops_after([], 8, SCHEDULE)
    assert policy.stops_after([], 9, SCHEDULE)
    assert parse_policy(describe(policy)) == policy


def test_given_shares_that_make_no_sense():
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        GivenShares((1.5,))
    with pytest.raises(ConfigError, match="never pruned"):
        GivenShares((0.5,) * 13).check(SCHEDULE)
    with pytest.raises(ConfigError, match="no scale 13"):
        GivenShares((0.5,), stop_after=13).check(SCHEDULE)


def test_policies_in_words_can_be_read():
    words = given_policies((0.5, 0.4, 0.3), 9)
    policies = [parse_policy(text) for text in words]
    assert policies[:2] == [GivenShares((0.5, 0.4, 0.3), 9), GivenShares((0.5, 0, 0), 9)]
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
    ],
)
def test_senseless_combinations(arguments: list[str]):
    assert isinstance(CliRunner().invoke(command, arguments).exception, ConfigError)


def test_small_random_model_end_to_end():
    arguments = ["--random-weights", "--model", "infinity-125m", "--depth", "1", "--width", "96", "--keep", "0.5,0.3"]
    arguments += ["--stop-scale", "4", "--repeats", "1", "--warmup", "0", "--threads", "1", "--json"]
    done = CliRunner().invoke(
        command, [*arguments, "--policy", "given:keep=0.5+0.3,stop_after=4"], catch_exceptions=False
    )
    result = json.loads(done.stdout)
    assert result["model"]["random_weights"] is True
    assert any("weights are random" in note for note in result["notes"])
    pruned = result["candidates"][-1]
    assert pruned["psnr_db"] is None
    assert [round(scale["tokens"]) for scale in pruned["scales"]][-2:] == [72, 77]
    assert [scale["rows"] for scale in pruned["scales"]][-2:] == [1, 1]

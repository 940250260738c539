"""Drawing of a run on real engines: what is drawn, resumption, shards, processes, and what is refused."""

from __future__ import annotations

import json
import random
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.evaluation import tree
from ldp_calibration.evaluation.benchmarks.benchmark import Benchmark
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.draw import Shard, draw, plan
from ldp_calibration.evaluation.pictures import INDEX, all_pictures, content
from ldp_calibration.evaluation.policies import run_policies
from ldp_calibration.evaluation.run import IMAGES, RUN, Run, RunSettings, begin, folder_name, new_settings, open_run
from ldp_calibration.evaluation.times import read_times, seconds_by_policy
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle, open_bundle
from ldp_runtime.errors import ConfigError, IntegrityError

BENCHMARK = Benchmark("p.txt", tuple(EvaluationPrompt(f"a {c} circle") for c in ("red", "green", "blue")), images=2)
LABELS = ("ld", "none:skip_last=1")
ALL = ("none", "null", *LABELS)


def settings(bundle: Bundle, *labels: str, **options: int) -> RunSettings:
    policies = run_policies(labels or LABELS, bundle.root, bundle.manifest, with_null=True)
    return new_settings(bundle.manifest, BENCHMARK, policies, **{"seed": 7, **options})


def drawn(folder: Path, bundle: Bundle, shard: Shard = Shard(), workers: int = 1) -> Run:  # noqa: B008
    run = begin(folder, settings(bundle), BENCHMARK.prompts)
    draw(run, bundle, ALL, shard=shard, workers=workers, threads=1)
    return run


@pytest.fixture(scope="module")
def whole(small_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return drawn(tmp_path_factory.mktemp("evaluation") / "whole", small_bundle)


def test_pictures_are_those_of_the_pipeline(whole: Run, small_pipe: Pipeline) -> None:
    """With the seeds of the protocol, and records that say how they were drawn."""
    from PIL import Image

    pictures = all_pictures(whole, whole.settings.policies)
    assert len(pictures) == 4 * 3 * 2
    for picture in pictures:
        record, policy = picture.record, picture.policy
        expected = 7 + (1 << 31) * policy.other_seeds + 2 * record.prompt + record.image
        assert record.seed == expected
        text = "none" if policy.other_seeds else policy.label
        result = small_pipe(record.text, seed=record.seed, policy=text)
        assert Image.open(picture.path).tobytes() == result.images[0].tobytes()
        trace = result.traces[0]
        assert (record.tokens, record.stopped_after, record.policy) == (trace.tokens, trace.stopped_after, trace.policy)
        assert record.text == BENCHMARK.prompts[record.prompt].text
    assert {p.record.policy for p in pictures if p.policy.label == "ld"} == {small_pipe_text(small_pipe)}


def small_pipe_text(pipe: Pipeline) -> str:
    return pipe("a red circle", seed=0, policy="ld", output_type="latent").traces[0].policy


def test_times_lie_apart(whole: Run) -> None:
    assert {timed.policy for timed in read_times(whole)} == set(ALL)
    assert all("second" not in line for line in (tree(whole.folder, IMAGES)[f"images/ld/00000/{INDEX}"].decode(),))
    assert set(seconds_by_policy(read_times(whole))) == set(ALL)


@pytest.mark.parametrize(("shards", "workers"), [([1, 0], 1), ([2, 0, 1], 1), ([0], 2)])
def test_shards_make_the_same_run(
    whole: Run, small_bundle: Bundle, tmp_path: Path, shards: list[int], workers: int
) -> None:
    for index in shards:
        run = drawn(tmp_path / "run", small_bundle, Shard(index, len(shards)), workers)
    assert tree(run.folder, IMAGES) == tree(whole.folder, IMAGES)
    assert (run.folder / RUN).read_bytes() == (whole.folder / RUN).read_bytes()
    assert not [path for path in run.folder.rglob(".tmp-*")]


def test_shards_of_several_machines_are_copied_together(whole: Run, small_bundle: Bundle, tmp_path: Path) -> None:
    for index in (0, 1):
        drawn(tmp_path / str(index), small_bundle, Shard(index, 2))
        shutil.copytree(tmp_path / str(index), tmp_path / "both", dirs_exist_ok=True)
    assert tree(tmp_path / "both", IMAGES) == tree(whole.folder, IMAGES)
    assert len(all_pictures(open_run(tmp_path / "both"), whole.settings.policies)) == 24


def test_a_run_goes_on_where_it_was(whole: Run, small_bundle: Bundle, tmp_path: Path) -> None:
    """As kills, users and bad disks leave it: what is whole is not drawn again, and what is not ours stays."""
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    images = folder / IMAGES
    (images / "ld/00001" / INDEX).unlink()
    (images / "none/00000/00001.png").unlink()
    png = images / "null/00002/00000.png"
    png.write_bytes(png.read_bytes()[:-20])
    (images / "none/00002" / INDEX).write_text('{"prompt": 2, "ima')
    (images / "none/00001/.tmp-0123456789abcdef0123456789abcdef").write_bytes(b"half")
    (images / "none/notes.txt").write_text("mine")
    (images / "none/00001/Thumbs.db").write_text("theirs")
    found = plan(open_run(folder), ALL, small_bundle.manifest, Shard())
    assert dict(found.missing) == {0: ("none",), 1: ("ld",), 2: ("none", "null")}
    assert (found.pictures, found.there) == (8, 16)
    assert found.seconds is not None
    kept = (images / "ld/00000/00000.png").stat().st_mtime_ns
    drawn(folder, small_bundle)
    assert (images / "ld/00000/00000.png").stat().st_mtime_ns == kept
    expected = tree(whole.folder, IMAGES)
    found_files = tree(folder, IMAGES)
    assert found_files.pop("images/none/notes.txt") == b"mine"
    assert found_files.pop("images/none/00001/Thumbs.db") == b"theirs"
    found_files.pop("images/none/00001/.tmp-0123456789abcdef0123456789abcdef", None)
    assert found_files == expected


def test_more_policies_and_prompts_can_follow(small_bundle: Bundle, tmp_path: Path) -> None:
    first = begin(tmp_path / "run", settings(small_bundle, "ld", limit=1), BENCHMARK.prompts)
    draw(first, small_bundle, ("none", "ld"), threads=1)
    assert len(all_pictures(first, [first.settings.policy("ld")])) == 2
    before = tree(first.folder, IMAGES)
    more = begin(tmp_path / "run", settings(small_bundle, "none:skip_last=1", limit=2), BENCHMARK.prompts)
    draw(more, small_bundle, ("none", "none:skip_last=1"), threads=1)
    assert before.items() <= tree(more.folder, IMAGES).items()
    assert [policy.label for policy in more.settings.policies] == ["none", "null", "ld", "none:skip_last=1"]
    assert (more.settings.limit, len(more.prompts)) == (2, 2)
    fewer = begin(tmp_path / "run", settings(small_bundle, "ld", limit=1), BENCHMARK.prompts)
    assert fewer.settings == more.settings
    with pytest.raises(IntegrityError, match="ld, prompt 1: it is not drawn"):
        all_pictures(fewer, [fewer.settings.policy("ld")])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 8}, "drawn with the seed 7, not with 8"),
        ({"images": 1}, "drawn with the images 2, not with 1"),
        ({"device": "cuda"}, "drawn with the device cpu, not with cuda"),
    ],
)
def test_other_settings_are_not_mixed_in(whole: Run, small_bundle: Bundle, change: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        begin(whole.folder, settings(small_bundle, **change), BENCHMARK.prompts)


def test_another_bundle_policy_or_prompts_file_is_not_mixed_in(whole: Run, small_bundle: Bundle) -> None:
    same, before = settings(small_bundle), (whole.folder / RUN).read_bytes()
    ld = same.policy("ld")
    for update, said in (
        ({"bundle": "f" * 64}, "with the bundle"),
        ({"prompts_sha256": "f" * 64}, "with the hash of the prompts"),
        ({"benchmark": "q.txt"}, "with the benchmark p.txt"),
        ({"policies": (ld.model_copy(update={"policy": "lhep:rho=0.9"}),)}, "the policy ld is .*, now it is lhep"),
        ({"policies": (ld.model_copy(update={"fits": "0" * 16}),)}, "the same with other fitted numbers"),
        ({"policies": (ld.model_copy(update={"label": "mine"}),)}, "ld and mine are one policy"),
    ):
        with pytest.raises(ConfigError, match=said):
            begin(whole.folder, same.model_copy(update=update), BENCHMARK.prompts)
    assert (whole.folder / RUN).read_bytes() == before


def test_folders_that_are_no_run(small_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("words")
    with pytest.raises(ConfigError, match=r"is no folder of a run: it holds thesis\.tex"):
        begin(tmp_path / "mine", settings(small_bundle), BENCHMARK.prompts)
    with pytest.raises(ConfigError, match="it is a file"):
        begin(tmp_path / "mine/thesis.tex", settings(small_bundle), BENCHMARK.prompts)
    with pytest.raises(ConfigError, match="there is no evaluation run"):
        open_run(tmp_path / "mine")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1}', '{"format": NaN}'])
def test_damaged_settings(whole: Run, tmp_path: Path, text: str) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    (tmp_path / "run" / RUN).write_text(text)
    with pytest.raises(IntegrityError, match="does not hold the settings of a run"):
        open_run(tmp_path / "run")


def test_changed_prompts_of_a_run(whole: Run, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    prompts = tmp_path / "run/prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("red", "pink", 1))
    with pytest.raises(IntegrityError, match="was changed since the run began"):
        open_run(tmp_path / "run")
    prompts.write_text("")
    with pytest.raises(IntegrityError, match="was changed since the run began"):
        open_run(tmp_path / "run")


def test_policies_of_a_run(small_bundle: Bundle) -> None:
    root, manifest = small_bundle.root, small_bundle.manifest
    for labels, said in (
        (["ld", "ld:rho=0.75"], "ld and ld:rho=0.75 are one policy"),
        (["none:skip_last=0"], "none and none:skip_last=0 are one policy"),
        (["null"], "null is the name of the null run"),
        (["ld-fats"], "unknown policy"),
        (["none:skip_last=99"], "skip_last 99"),
        (["ld:fill=linear"], "needs numbers that are fitted"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_policies(labels, root, manifest, with_null=True)
    assert [p.label for p in run_policies(["none", " ld "], root, manifest, with_null=False)] == ["none", "ld"]


def test_names_of_folders() -> None:
    labels = ["ld", "LD", "ld:rho=0.9", "ld:rho=0,9", "a/../b", "..", "x" * 300, "é", "", "none:skip_last=1"]
    names = [folder_name(label) for label in labels]
    assert len({name.lower() for name in names}) == len(labels)
    assert names[0] == "ld"
    assert all(len(name) < 80 and "/" not in name and not name.startswith(".") for name in names)


@pytest.mark.parametrize("text", ["", "1", "4/4", "-1/4", "1/0", "a/b", "0/4/2", "½/2", "0/" + "9" * 5000, "٠/٤"])
def test_shards_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the shard"):
        Shard.parse(text)
    assert Shard.parse("3/4") == Shard(3, 4)


@pytest.mark.parametrize("options", [{"seed": -1}, {"seed": 1 << 31}, {"images": 0}, {"limit": 0}])
def test_numbers_out_of_range(small_bundle: Bundle, options: dict) -> None:
    with pytest.raises(ConfigError, match="must"):
        settings(small_bundle, **options)


def test_two_processes_do_not_draw_one_shard(whole: Run, small_bundle: Bundle) -> None:
    with whole.exclusive("shard-0-of-1", "drawing of this shard"), pytest.raises(ConfigError, match="is going on"):
        draw(whole, small_bundle, ALL)


def test_a_full_disk_loses_nothing(whole: Run, small_bundle: Bundle, tmp_path: Path) -> None:
    """A limit on the size of files says what a full disk says."""
    code = (
        "import sys, resource, pathlib\n"
        "from ldp_calibration.evaluation.draw import draw\n"
        "from ldp_calibration.evaluation.run import open_run\n"
        "from ldp_runtime.bundle.files import open_bundle\n"
        "run = open_run(pathlib.Path(sys.argv[1]))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
        "draw(run, open_bundle(sys.argv[2]), ('none', 'ld'), threads=1)\n"
    )
    run = begin(tmp_path / "run", settings(small_bundle), BENCHMARK.prompts)
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"]
    made = subprocess.run([*command, run.folder, small_bundle.folder], capture_output=True, text=True, check=False)
    assert "CapacityError: the disk of" in made.stderr, made.stderr
    assert resource.RLIMIT_FSIZE is not None
    assert not list(run.folder.rglob(INDEX))
    draw(run, small_bundle, ALL, threads=1)
    assert tree(run.folder, IMAGES) == tree(whole.folder, IMAGES)


def test_a_policy_that_changes_meanwhile_is_noticed(whole: Run, small_bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "run")
    path = tmp_path / "run" / RUN
    entry = json.loads(path.read_text())
    entry["policies"][2]["policy"] = "lhep:rho=0.9"
    path.write_text(json.dumps(entry))
    with pytest.raises(IntegrityError, match="the policy ld was changed"):
        draw(open_run(tmp_path / "run"), small_bundle, ("ld",), threads=1)


def test_every_byte_of_a_picture_counts(whole: Run) -> None:
    picture = random.Random(0).choice(all_pictures(whole, whole.settings.policies))
    before = picture.path.read_bytes()
    for damaged in (before[:-1], before + b"\0", b""):
        picture.path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not the one that was drawn"):
            content(picture)
    picture.path.write_bytes(before)
    assert content(picture) == before


def test_the_bundle_of_the_run_is_the_one_that_draws(small_bundle: Bundle) -> None:
    assert settings(small_bundle).bundle == open_bundle(small_bundle.folder).manifest.digest

"""Fetching benchmarks of others, against a server on this machine: hashes, licences, resumption, and every refusal."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fuzz.kills import Counter, in_a_child
from helpers.evaluation import tree
from helpers.hub_server import COMMIT, Hub, serving
from ldp_calibration.evaluation.benchmarks import published
from ldp_calibration.evaluation.benchmarks.choose import read_published
from ldp_calibration.evaluation.benchmarks.published import PUBLISHED, STYLES, PublishedFile, git_id
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import CapacityError, ConfigError, HubError, IntegrityError

from ldp_export.cli import main
from ldp_export.hub.benchmarks import fetch_benchmark, plan_benchmark

#: Files in the publishers' formats, with other words.
GENEVAL = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "one bench"},
    {
        "tag": "counting",
        "include": [{"class": "cow", "count": 2}],
        "exclude": [{"class": "cow", "count": 3}],
        "prompt": "2 cows",
    },
]
HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)
DPG = f"""{HEADER}
b1,"long, long text",kw,1,0,entity,whole,entity - whole (thing),Is there a thing?
b1,"long, long text",kw,2,"1,3",attribute,color,attribute - color (thing),Is it red?
a2,other text,kw,1,0,entity,whole,entity - whole (cow),Is there a cow?
"""
CONTENT = {
    "djghosh13/geneval": {
        "prompts/evaluation_metadata.jsonl": "".join(f"{json.dumps(line)}\n" for line in GENEVAL),
        "evaluation/object_names.txt": "bench\ncow\n",
    },
    "Weepingchestnut/Lvar": {
        "evaluation/gen_eval/prompt_rewrite_cache.json": json.dumps(
            {"one bench": "a long bench", "2 cows": "two of them"}
        )
    },
    "TencentQQGYLab/ELLA": {"dpg_bench/dpg_bench.csv": DPG},
    "THUDM/ImageReward": {"benchmark/benchmark-prompts.json": json.dumps([{"id": "7-1", "prompt": " a cat "}])},
    "zhwang/HPDv2": {f"benchmark/{style}.json": json.dumps([f"{style} 0", "the same"]) for style in STYLES},
}
COUNTS = {"geneval": 2, "geneval-rewritten": 2, "dpg": 2, "hpsv2": 8, "imagereward": 1}


def hashed(file: PublishedFile) -> PublishedFile:
    """A file of the catalogue with the hash of the content that is served here."""
    content = CONTENT[file.repository][file.path].encode()
    sha256 = hashlib.sha256(content).hexdigest() if file.sha256 else None
    return replace(file, sha256=sha256, git_id=git_id(content) if file.git_id else None)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folders = dict[str, Path]()
    for repository, files in CONTENT.items():
        folders[repository] = tmp_path / "served" / repository
        for path, content in files.items():
            (folders[repository] / path).parent.mkdir(parents=True, exist_ok=True)
            (folders[repository] / path).write_text(content)
    known = {
        name: replace(one, files=tuple(map(hashed, one.files)), prompts=COUNTS[name]) for name, one in PUBLISHED.items()
    }
    for name, one in known.items():
        monkeypatch.setitem(PUBLISHED, name, one)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    with serving(folders) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def fetch(hub: Hub, *arguments: str | Path) -> Result:
    return run("fetch", *arguments, "--github-mirror", f"{hub.url}/raw")


def test_hashes_of_the_catalogue_are_pinned() -> None:
    """Only what no hash is known of is pinned by the first fetch, and it is no default."""
    for one in PUBLISHED.values():
        for file in one.files:
            assert len(file.revision) == 40 if file.is_pinned else one.terms
            assert [file.sha256, file.git_id].count(None) >= 1
    assert {name for name, one in PUBLISHED.items() if one.terms} == {"hpsv2", "geneval-rewritten"}


def test_what_is_free_is_fetched_and_read(hub: Hub) -> None:
    done = fetch(hub, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])["benchmarks"]
    assert [one["benchmark"] for one in found] == ["geneval", "dpg", "imagereward"]
    geneval = read_published("geneval")
    assert [(p.text, p.tag) for p in geneval.prompts] == [("one bench", "single_object"), ("2 cows", "counting")]
    assert geneval.prompts[1].facts == {"include": GENEVAL[1]["include"], "exclude": GENEVAL[1]["exclude"]}
    assert geneval.images == 4
    dpg = read_published("dpg")
    assert [p.facts["item_id"] for p in dpg.prompts] == ["b1", "a2"]
    assert dpg.prompts[0].text == "long, long text"
    assert dpg.prompts[0].facts["questions"][1] == {
        "row": 1, "id": "2", "dependency": "1,3", "tuple": "attribute - color (thing)", "question": "Is it red?",
    }  # fmt: skip
    assert dpg.images == 4
    (cat,) = read_published("imagereward").prompts
    assert (cat.text, cat.facts) == (" a cat ", {"id": "7-1"})  # as it was published
    assert read_published("imagereward").images == 10


def test_what_has_terms_needs_a_word(hub: Hub) -> None:
    refused = fetch(hub, "hpsv2")
    assert refused.exit_code == 2
    assert "no licence" in refused.output
    assert "--accept-license hpsv2" in refused.output
    assert not hub.requests
    assert fetch(hub, "hpsv2", "--accept-license", "hpsv2").exit_code == 0
    hpsv2 = read_published("hpsv2")
    assert [p.tag for p in hpsv2.prompts] == [style for style in STYLES for _ in range(2)]
    assert hpsv2.prompts[3].text == hpsv2.prompts[5].text == "the same"
    assert hpsv2.images == 1
    assert fetch(hub, "geneval-rewritten", "--accept-license", "geneval-rewritten").exit_code == 0
    rewritten = read_published("geneval-rewritten").prompts[0]
    assert (rewritten.text, rewritten.facts["original"]) == ("a long bench", "one bench")
    assert rewritten.facts["include"] == GENEVAL[0]["include"]


def test_a_dry_run_needs_no_network(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = run("fetch", "--dry-run", "--json")
    assert done.exit_code == 0, done.output
    found = {one["benchmark"]: one for one in json.loads(done.stdout)["benchmarks"]}
    assert found.keys() == PUBLISHED.keys()
    assert found["geneval"]["files"][0]["hash"] == PUBLISHED["geneval"].files[0].sha256
    assert found["dpg"]["licence"] == "Apache-2.0"
    assert not found["hpsv2"]["accepted"]
    assert "127.0.0.1:9" in found["hpsv2"]["unasked"]
    assert not (tmp_path / "cache").exists()
    said = run("fetch", "--dry-run").output
    assert "needs --accept-license hpsv2" in said
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    asked = json.loads(run("fetch", "hpsv2", "--dry-run", "--json").stdout)["benchmarks"][0]
    assert asked["files"][0]["commit"] == COMMIT
    assert asked["files"][0]["bytes"] == len(CONTENT["zhwang/HPDv2"]["benchmark/anime.json"])


def test_the_first_fetch_pins_the_hubs_commit(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    assert fetch(hub, "hpsv2", "--accept-license", "hpsv2", "--local-dir", folder).exit_code == 0
    hub.requests.clear()
    again = fetch(hub, "hpsv2", "--accept-license", "hpsv2", "--local-dir", folder)
    assert "was here" in again.output
    assert not hub.requests
    (folder / "hpsv2" / "photo.json").unlink()
    assert fetch(hub, "hpsv2", "--accept-license", "hpsv2", "--local-dir", folder).exit_code == 0
    assert f"/api/datasets/zhwang/HPDv2/revision/{COMMIT}" in [path for _, path, _ in hub.requests]
    assert "main" not in {path.rpartition("/")[2] for _, path, _ in hub.requests}


def test_a_later_run_goes_on_where_the_server_went_down(hub: Hub, tmp_path: Path) -> None:
    hub.fault.cut_after, hub.fault.down_after_cut = 100, True
    broken = fetch(hub, "dpg")
    assert broken.exit_code == HubError.exit_code
    assert "503" in broken.output
    folder = tmp_path / "cache/ldp-export/benchmarks/dpg"
    assert (folder / "dpg_bench.csv.partial").stat().st_size == 100
    assert not (folder / "dpg_bench.csv").exists()
    hub.fault.status = None
    hub.requests.clear()
    assert fetch(hub, "dpg").exit_code == 0
    assert [span for _, span in hub.downloads()] == ["bytes=100-"]
    assert sorted(path.name for path in folder.iterdir()) == ["dpg_bench.csv", "fetched.json"]


@pytest.mark.parametrize("beginning", [DPG.encode(), b"x" * len(DPG), b"y" * (len(DPG) + 5)])
def test_beginnings_of_any_kind(hub: Hub, tmp_path: Path, beginning: bytes) -> None:
    """A whole file under the name of a beginning is taken; something else is fetched anew, at the latest next."""
    folder = tmp_path / "cache/ldp-export/benchmarks/dpg"
    folder.mkdir(parents=True)
    (folder / "dpg_bench.csv.partial").write_bytes(beginning)
    first = fetch(hub, "dpg")
    assert (first.exit_code == 0) == (beginning == DPG.encode())
    assert fetch(hub, "dpg").exit_code == 0
    assert (folder / "dpg_bench.csv").read_text() == DPG


@pytest.mark.parametrize("name", ["dpg", "hpsv2"])
def test_other_contents_are_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    file = PUBLISHED[name].files[-1]
    hub.fault.replace.add(file.path)
    done = fetch(hub, name, "--accept-license", "hpsv2")
    assert done.exit_code == IntegrityError.exit_code
    assert "they were deleted" in done.output
    assert not (tmp_path / "cache/ldp-export/benchmarks" / name / "fetched.json").exists()
    hub.fault.replace.clear()
    assert fetch(hub, name, "--accept-license", "hpsv2").exit_code == 0


def test_endless_contents_are_cut(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldp_export.hub.raw.MOST_BYTES", 5000)
    hub.fault.endless.add("dpg_bench/dpg_bench.csv")
    done = fetch(hub, "dpg")
    assert done.exit_code == IntegrityError.exit_code
    assert "more than 5000 bytes" in done.output


@pytest.mark.parametrize("status", [403, 404, 500])
def test_refusals_are_typed(hub: Hub, status: int) -> None:
    hub.fault.status = status
    done = fetch(hub, "geneval")
    assert done.exit_code == HubError.exit_code
    assert str(status) in done.output
    assert "--github-mirror" in done.output


def test_what_the_hub_no_longer_has(hub: Hub) -> None:
    (hub.repositories["zhwang/HPDv2"] / "benchmark/photo.json").unlink()
    done = fetch(hub, "hpsv2", "--accept-license", "hpsv2")
    assert done.exit_code == HubError.exit_code
    assert "lacks benchmark/photo.json" in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("genevall",), "did you mean 'geneval'"),
        (("geneval", "--accept-license", "hps"), "no benchmark 'hps'"),
        (("geneval", "--github-mirror", "ftp://x"), "no address of a server"),
    ],
)
def test_mistakes(hub: Hub, arguments: tuple[str, ...], said: str) -> None:
    done = run("fetch", *arguments)
    assert done.exit_code == 2
    assert said in done.output
    assert not hub.requests


def test_a_file_in_the_place_of_the_folder_is_refused(hub: Hub, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("")
    assert fetch(hub, "dpg", "--local-dir", taken).exit_code == 2


@pytest.mark.parametrize("where", ["download._Counted.write", "benchmarks.write_durably"])
def test_a_full_disk_is_typed_and_the_next_run_goes_on(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Nothing is used before the record is written, whichever write finds no room."""
    folder = tmp_path / "folder"

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(f"ldp_export.hub.{where}", full)
        done = fetch(hub, "dpg", "--local-dir", folder)
    assert done.exit_code == CapacityError.exit_code, done.output
    assert not (folder / "dpg" / published.RECORD).exists()
    with pytest.raises(ConfigError, match="are not in"):
        read_published("dpg", folder)
    assert fetch(hub, "dpg", "--local-dir", folder).exit_code == 0
    assert read_published("dpg", folder).prompts


def test_a_fetch_that_is_killed_goes_on(hub: Hub, tmp_path: Path) -> None:
    """Killed with -9 before ten of its changes to the disk: at the end there is what an undisturbed fetch leaves."""
    names = ("dpg", "hpsv2", "--accept-license", "hpsv2", "--local-dir")

    def fetched(folder: Path, victim: int, note: Path) -> None:
        counter = Counter(folder)
        counter.victim = victim
        assert fetch(hub, *names, folder).exit_code == 0
        note.write_text(str(counter.count))

    whole, note = tmp_path / "whole", tmp_path / "calls"
    assert in_a_child(lambda: fetched(whole, 0, note)) == 0
    calls, expected = int(note.read_text()), tree(whole, ".")
    assert calls > 10
    victims, killed = random.Random(0).sample(range(1, calls + 1), 10), 0
    for victim in victims:
        folder = tmp_path / f"killed-{victim}"
        killed += in_a_child(lambda folder=folder, victim=victim: fetched(folder, victim, note)) == -signal.SIGKILL
        assert in_a_child(lambda folder=folder: fetched(folder, 0, note)) == 0
        assert tree(folder, ".") == expected, victim
    assert killed == len(victims)


def damaged(record: dict[str, Any], folder: Path) -> None:
    record["files"][0]["sha256"] = "0" * 64
    (folder / published.RECORD).write_text(json.dumps(record))


def test_what_was_changed_since_is_refused(hub: Hub, tmp_path: Path) -> None:
    fetch_benchmark(plan_benchmark(PUBLISHED["dpg"], tmp_path, mirror=f"{hub.url}/raw"))
    fetch_benchmark(plan_benchmark(PUBLISHED["hpsv2"], tmp_path))
    (tmp_path / "dpg/dpg_bench.csv").write_text(DPG.replace("red", "blue"))
    with pytest.raises(IntegrityError, match=r"dpg_bench\.csv in .* are not what was published"):
        read_published("dpg", tmp_path)
    record = json.loads((tmp_path / "hpsv2/fetched.json").read_text())
    assert "place" not in record["files"][0]
    damaged(record, tmp_path / "hpsv2")
    with pytest.raises(IntegrityError, match=r"anime\.json in"):
        read_published("hpsv2", tmp_path)
    for content in ("", "{}", '{"files": [1]}', '{"files": 1}'):
        (tmp_path / "hpsv2/fetched.json").write_text(content)
        with pytest.raises(IntegrityError, match="cannot be read"):
            read_published("hpsv2", tmp_path)
    assert fetch(hub, "dpg", "--local-dir", tmp_path).exit_code == 0
    assert read_published("dpg", tmp_path).prompts[0].facts["questions"][1]["question"] == "Is it red?"


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("prompts/evaluation_metadata.jsonl", '{"tag": "counting"}\n{"tag": "a", "prompt": "b"}\n'),
        ("prompts/evaluation_metadata.jsonl", "[1]\n"),
        ("prompts/evaluation_metadata.jsonl", '{"tag": "a", "prompt": " "}\n{"tag": "a", "prompt": "b"}\n'),
        ("prompts/evaluation_metadata.jsonl", '{"tag": "a", "prompt": "b"}\n'),
        ("prompts/evaluation_metadata.jsonl", "\xff\n"),
    ],
)
def test_other_formats_are_refused(hub: Hub, tmp_path: Path, monkeypatch: Any, path: str, content: str) -> None:
    served = hub.repositories["djghosh13/geneval"] / path
    served.write_text(content, "latin-1")
    one = PUBLISHED["geneval"]
    files = (replace(one.files[0], sha256=hashlib.sha256(served.read_bytes()).hexdigest()), one.files[1])
    monkeypatch.setitem(PUBLISHED, "geneval", replace(one, files=files))
    assert fetch(hub, "geneval", "--local-dir", tmp_path).exit_code == 0
    with pytest.raises(IntegrityError, match="has another format"):
        read_published("geneval", tmp_path)


def test_fetched_prompts_are_drawn(hub: Hub, small_bundle: Bundle, tmp_path: Path) -> None:
    """Without the prompts, generate says the command that fetches them; with them it draws the protocol's seeds."""
    generate = ("generate", small_bundle.folder, "--benchmark", "geneval", "--output", tmp_path / "run")
    lacking = run(*generate, "--dry-run")
    assert lacking.exit_code == 2
    assert "fetch them: ldp-export evaluate fetch geneval" in lacking.output
    assert fetch(hub, "geneval").exit_code == 0
    planned = json.loads(run(*generate, "--dry-run", "--json").stdout)
    assert (planned["prompts"], planned["pictures"], planned["seconds"]) == (2, 16, None)
    done = run(*generate, "--policy", "ld-paper", "--no-null", "--seed", "3")
    assert done.exit_code == 0, done.output
    lines = (tmp_path / "run/images/ld-paper/00001/index.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [7, 8, 9, 10]
    assert fetch(hub, "hpsv2", "--accept-license", "hpsv2").exit_code == 0
    twice = run("generate", small_bundle.folder, "--benchmark", "hpsv2", "--no-null", "--output", tmp_path / "hps")
    assert twice.exit_code == 0, twice.output  # a published prompt may be there twice
    scored = run("score", tmp_path / "hps", "--scorer", "psnr")
    assert scored.exit_code == 0, scored.output

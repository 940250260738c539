"""Fetching, against a server on this machine that speaks the hub's protocol: downloads, resumption, every refusal."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner, Result
from helpers.hub_server import COMMIT, Hub, listing, serving
from helpers.samples import TRANSFORMER, random_transformer, random_vae, spec, write_text_encoder
from ldp_runtime.errors import CapacityError, CheckpointError, ConfigError, HubError, IntegrityError

from ldp_export.checkpoints.files.tensors import read_state
from ldp_export.checkpoints.infinity import original_infinity_state, original_infinity_vae_state
from ldp_export.checkpoints.synthetic import write_checkpoint
from ldp_export.cli import main
from ldp_export.hub.client import HubFile, list_repository
from ldp_export.hub.converted import RECORD, convert_model
from ldp_export.hub.download import PARTIAL, download
from ldp_export.hub.fetch import fetch, plan_fetch
from ldp_export.hub.local import local_files
from ldp_export.hub.resolve import find_sources, resolve_model
from ldp_export.models import registry
from ldp_export.models.registry import T5_FILES, InfinitySpec, infinity_hub
from ldp_export.progress import ProgressEvent

NAME = "infinity-tiny"
PUBLISHED = ("infinity-shapes", "infinity-2b", "infinity-layer16")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two repositories: one in the layout of the 2B (`.pth`) and of the 8B (shards), one of a text encoder."""
    root = tmp_path_factory.mktemp("published")
    model = root / "model"
    model.mkdir()
    transformer = original_infinity_state(random_transformer())
    torch.save(transformer, model / "tiny_reg.pth")
    torch.save({"vae": original_infinity_vae_state(random_vae())}, model / "tiny_vae.pth")
    sharded = write_checkpoint(spec(), root / "sharded", shard_bytes=150_000)
    shutil.copytree(sharded.transformer, model / "tiny_weights")
    (model / "README.md").write_text("not wanted")
    return {"acme/tiny": model, "acme/t5": write_text_encoder(root / "t5", TRANSFORMER.text_channels)}


@pytest.fixture
def hub(published: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(published) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 50_000)
        monkeypatch.setattr(registry, "MODELS", {NAME: tiny()} | {n: registry.MODELS[n] for n in PUBLISHED})
        yield server


def tiny(transformer: str = "tiny_reg.pth", repository: str = "acme/tiny", revision: str = "main") -> InfinitySpec:
    text = replace(T5_FILES, repository="acme/t5", revision="main")
    files = infinity_hub(transformer, "tiny_vae.pth", revision, repository, text, vae_bytes=None)
    return replace(spec(), name=NAME, hub=files)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


class TestDownloads:
    @pytest.mark.parametrize("name", ["tiny_reg.pth", "tiny_weights"])
    def test_a_whole_model_arrives_and_loads(self, hub: Hub, name: str) -> None:
        model = tiny(name)
        assert local_files(model).state == "absent"
        found = fetch(plan_fetch(model))
        assert read_state(found.transformer).keys() == original_infinity_state(random_transformer()).keys()
        assert read_state(found.vae)
        assert found.text_encoder is not None
        assert (found.text_encoder / "tokenizer.json").is_file()
        assert local_files(model).state == "complete"
        assert not any("README" in path for path, _ in hub.downloads())

    def test_a_second_time_nothing_is_downloaded(self, hub: Hub) -> None:
        first = fetch(plan_fetch(tiny()))
        hub.requests.clear()
        plan = plan_fetch(tiny())
        assert plan.bytes_to_fetch == 0
        assert fetch(plan) == first
        hub.requests.clear()
        assert find_sources(tiny()) == first
        assert not hub.requests, "what is complete is found without the network"
        assert first.published == ("transformer", "vae", "text_encoder")
        assert first.text_encoder is not None
        own = find_sources(tiny(), text_encoder=first.text_encoder)
        assert own == replace(first, published=("transformer", "vae"))

    def test_what_another_process_has_fetched_meanwhile_is_kept(self, hub: Hub) -> None:
        plan = plan_fetch(tiny())
        found = fetch(plan_fetch(tiny()))
        hub.requests.clear()
        assert fetch(plan) == found
        assert not hub.downloads()

    def test_only_fetching_downloads(self, hub: Hub) -> None:
        with pytest.raises(CheckpointError, match=rf"lacks tiny_reg\.pth(.|\n)*ldp-export fetch {NAME}"):
            find_sources(tiny())
        assert not hub.requests

    def test_the_cache_is_the_hub_clients_own(self, hub: Hub, tmp_path: Path) -> None:
        from huggingface_hub import try_to_load_from_cache

        found = fetch(plan_fetch(tiny()))
        theirs = try_to_load_from_cache("acme/tiny", "tiny_reg.pth", cache_dir=tmp_path / "cache")
        assert str(found.transformer) == theirs
        assert COMMIT in str(theirs)

    def test_a_connection_that_breaks_is_taken_up_again(self, hub: Hub) -> None:
        hub.fault.cut_after = 100_000
        fetch(plan_fetch(tiny(), text_encoder=False))
        assert "bytes=100000-" in [span for _, span in hub.downloads()]
        assert local_files(tiny(), text_encoder=False).state == "complete"

    def test_a_later_run_goes_on_where_the_hub_went_down(self, hub: Hub) -> None:
        hub.fault.cut_after, hub.fault.down_after_cut = 100_000, True
        with pytest.raises(HubError, match="503"):
            fetch(plan_fetch(tiny(), text_encoder=False))
        assert local_files(tiny(), text_encoder=False).state == "partial"
        hub.fault.status = None
        hub.requests.clear()
        plan = plan_fetch(tiny(), text_encoder=False)
        assert [wanted.state for wanted in plan.files] == ["partial", "absent"]
        assert plan.bytes_to_fetch == plan.bytes - 100_000
        found = fetch(plan)
        assert ("/cdn/acme/tiny/tiny_reg.pth", "bytes=100000-") in hub.downloads()
        assert read_state(found.transformer)

    def test_a_folder_for_a_site_without_network(self, hub: Hub, tmp_path: Path) -> None:
        folder = tmp_path / "carried"
        found = fetch(plan_fetch(tiny("tiny_weights"), local_dir=folder))
        assert found.transformer == folder / "tiny_weights"
        assert not any(path.is_symlink() for path in folder.rglob("*"))
        assert not list(folder.rglob(f"*{PARTIAL}"))
        hub.requests.clear()
        assert find_sources(tiny("tiny_weights"), local_dir=folder) == found
        next((folder / "tiny_weights").glob("*-of-*")).unlink()
        with pytest.raises(CheckpointError, match=r"lacks tiny_weights/model-0.*\n.*--local-dir"):
            find_sources(tiny("tiny_weights"), local_dir=folder)
        assert not hub.requests

    def test_another_revision(self, hub: Hub) -> None:
        plan = plan_fetch(tiny(), revision=COMMIT)
        assert {wanted.file.commit for wanted in plan.files} == {COMMIT}
        fetch(plan)
        assert local_files(tiny(revision=COMMIT)).state == "complete"


class TestWrongContent:
    def test_a_wrong_hash_names_the_file_and_leaves_nothing(self, hub: Hub, tmp_path: Path) -> None:
        hub.fault.replace = {"tiny_reg.pth"}
        with pytest.raises(IntegrityError, match=r"(?s)tiny_reg\.pth of acme/tiny.*SHA-256.*proxy or mirror"):
            fetch(plan_fetch(tiny()))
        assert local_files(tiny()).state == "absent"
        assert not list((tmp_path / "cache").rglob(f"*{PARTIAL}"))

    def test_small_files_are_checked_too(self, hub: Hub) -> None:
        hub.fault.replace = {"config.json"}
        with pytest.raises(IntegrityError, match=r"config\.json of acme/t5.*git id"):
            fetch(plan_fetch(tiny()))

    def test_a_file_that_ends_early(self, hub: Hub) -> None:
        hub.fault.short = {"tiny_reg.pth"}
        with pytest.raises(HubError, match=r"ended after \d+ of \d+ bytes"):
            fetch(plan_fetch(tiny()))

    def test_a_file_that_was_damaged_here(self, hub: Hub) -> None:
        found = fetch(plan_fetch(tiny()))
        data = bytearray(found.vae.read_bytes())
        data[-500] ^= 1
        found.vae.resolve().write_bytes(data)
        with pytest.raises(IntegrityError, match=r"(?s)another content.*delete it and run the command again"):
            fetch(plan_fetch(tiny()))
        found.vae.resolve().unlink()
        assert read_state(fetch(plan_fetch(tiny())).vae)

    def test_a_stale_beginning_is_found_out(self, hub: Hub, tmp_path: Path) -> None:
        file = next(file for file in list_repository("acme/tiny", "main") if file.path == "tiny_vae.pth")
        place = tmp_path / "there" / "tiny_vae.pth"
        place.parent.mkdir()
        place.with_name(place.name + PARTIAL).write_bytes(b"of an older version")
        with pytest.raises(IntegrityError, match="run it again"):
            download(file, place)
        download(file, place)
        assert file.matches(place)


class TestHostileHub:
    """Names, sizes and hashes that lead elsewhere, and bodies that do not end."""

    @pytest.fixture
    def victim(self, tmp_path: Path) -> Iterator[Path]:
        path = tmp_path / "victim.safetensors"
        path.write_bytes(b"someone's")
        yield path
        assert path.read_bytes() == b"someone's"
        assert not (tmp_path / "escaped").exists()

    @pytest.mark.parametrize(
        "name",
        [
            "tiny_weights/../../victim.safetensors",
            "../victim.safetensors",
            "tiny_weights/./x.safetensors",
            "tiny_weights//x.safetensors",
            "tiny_weights\\..\\..\\victim.safetensors",
            "C:/x.safetensors",
            "tiny_weights/\n.safetensors",
            "TINY_VAE.pth",
            "tiny_vae.pth",
            "tiny_vae.pth/x.safetensors",
            None,
            7,
            ["tiny_weights/x.safetensors"],
        ],
    )
    @pytest.mark.parametrize("to_folder", [True, False])
    def test_names(self, hub: Hub, victim: Path, name: object, to_folder: bool) -> None:
        listed = listing("acme/tiny", hub.repositories["acme/tiny"])
        listed["siblings"].append(dict(listed["siblings"][-1], rfilename=name))
        hub.fault.listed["acme/tiny"] = json.dumps(listed).encode()
        with pytest.raises(HubError, match=r"list of files of acme/tiny at main .* is damaged"):
            plan_fetch(tiny("tiny_weights"), local_dir=victim.parent / "folder" if to_folder else None)
        assert not hub.downloads()

    @pytest.mark.parametrize("text", ["../../../../escaped/deep/er", "a" * 63, "A" * 64, "g" * 64, "", 7, None])
    @pytest.mark.parametrize("where", ["sha256", "blobId", "sha"])
    def test_hashes(self, hub: Hub, victim: Path, where: str, text: object) -> None:
        listed = listing("acme/tiny", hub.repositories["acme/tiny"])
        kept = next(entry for entry in listed["siblings"] if "lfs" in entry)
        {"sha256": kept["lfs"], "blobId": kept, "sha": listed}[where][where] = text
        hub.fault.listed["acme/tiny"] = json.dumps(listed).encode()
        with pytest.raises(HubError, match="is no hash of"):
            plan_fetch(tiny())

    @pytest.mark.parametrize("size", [-1, 1.5, "7", None, True, 2**63])
    def test_sizes(self, hub: Hub, size: object) -> None:
        listed = listing("acme/tiny", hub.repositories["acme/tiny"])
        next(entry for entry in listed["siblings"] if "lfs" in entry)["lfs"]["size"] = size
        hub.fault.listed["acme/tiny"] = json.dumps(listed).encode()
        with pytest.raises(HubError, match="the size of"):
            plan_fetch(tiny())

    @pytest.mark.parametrize(
        "text", [b"null", b"[]", b"{", b"[" * 10_000, b'{"sha": "x"}', b"\xff", b'{"siblings": 3}']
    )
    def test_lists_that_are_none(self, hub: Hub, text: bytes) -> None:
        hub.fault.listed["acme/tiny"] = text
        with pytest.raises(HubError, match="is damaged"):
            plan_fetch(tiny())

    def test_a_list_that_never_ends(self, hub: Hub) -> None:
        hub.fault.endless = {""}
        with pytest.raises(HubError, match="answers with more than"):
            plan_fetch(tiny())

    @pytest.mark.parametrize("path", ["tiny_vae.pth", "config.json"])
    def test_a_body_that_never_ends(self, hub: Hub, tmp_path: Path, path: str) -> None:
        hub.fault.endless = {path}
        plan = plan_fetch(tiny(), local_dir=tmp_path / "folder")
        with pytest.raises(IntegrityError, match="serves more than the listed"):
            fetch(plan)
        stored = sum(file.stat().st_size for file in (tmp_path / "folder").rglob("*"))
        assert stored < plan.bytes + 100_000

    def test_links_that_lead_out_of_the_folder(self, hub: Hub, victim: Path) -> None:
        folder = victim.parent / "folder"
        folder.mkdir()
        (folder / "text_encoder").symlink_to(victim.parent)
        with pytest.raises(HubError, match="outside"):
            fetch(plan_fetch(tiny(), local_dir=folder))
        assert not (victim.parent / "config.json").exists()

    def test_a_beginning_that_is_another_file(self, hub: Hub, victim: Path) -> None:
        """A link under the name of a beginning: what it leads to is not appended to."""
        folder = victim.parent / "folder"
        folder.mkdir()
        (folder / f"tiny_vae.pth{PARTIAL}").symlink_to(victim)
        (folder / f"tiny_reg.pth{PARTIAL}").hardlink_to(victim)
        assert read_state(fetch(plan_fetch(tiny(), local_dir=folder)).vae)

    @pytest.mark.parametrize("revision", ["../x", "a\\b", "", "/etc"])
    def test_revisions(self, hub: Hub, revision: str) -> None:
        with pytest.raises(ConfigError, match="cannot be a revision"):
            plan_fetch(tiny(), revision=revision)
        assert not hub.requests


class TestCacheFolder:
    @pytest.mark.parametrize(
        ("variable", "value", "below"),
        [
            ("HF_HOME", "$PLACE/hf", "hf/hub"),
            ("HF_HOME", "${PLACE}/hf", "hf/hub"),
            ("HF_HUB_CACHE", "$PLACE/cache", "cache"),
            ("HUGGINGFACE_HUB_CACHE", "$PLACE/old", "old"),
            ("HF_HOME", "~/hf", "home/hf/hub"),
        ],
    )
    def test_variables_and_homes_are_expanded_as_the_client_does(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str, below: str
    ) -> None:
        from ldp_export.hub.client import cache_folder

        for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("PLACE", str(tmp_path))
        monkeypatch.setenv(variable, value)
        assert cache_folder() == tmp_path / below
        code = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
        theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert theirs.stdout.strip() == str(cache_folder())


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "code", "says"),
        [
            (403, "GatedRepo", "accept its terms"),
            (401, "RepoNotFound", "no acme/tiny at main"),
            (404, "RevisionNotFound", "--revision main"),
            (500, "", "refused"),
            (401, "", "HF_TOKEN"),
        ],
    )
    def test_http(self, hub: Hub, status: int, code: str, says: str, tmp_path: Path) -> None:
        hub.fault.status, hub.fault.code = status, code
        with pytest.raises(HubError, match=says):
            plan_fetch(tiny())
        assert not (tmp_path / "cache").exists()

    def test_a_hub_that_cannot_be_reached(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        with pytest.raises(HubError, match=r"(?s)cannot reach acme/tiny.*--local-dir"):
            plan_fetch(tiny())

    def test_no_such_repository_revision_or_file(self, hub: Hub) -> None:
        with pytest.raises(HubError, match="no acme/absent"):
            plan_fetch(tiny(repository="acme/absent"))
        with pytest.raises(HubError, match="no revision v9"):
            plan_fetch(tiny(), revision="v9")
        with pytest.raises(HubError, match=r"lacks large\.pth; it holds README\.md, tiny_reg\.pth"):
            plan_fetch(tiny("large.pth"))

    def test_a_transformer_of_another_size_than_its_name(self, hub: Hub) -> None:
        large = replace(tiny(), transformer=replace(TRANSFORMER, width=2048, heads=16, ffn=8192))
        with pytest.raises(CheckpointError, match="another model under this name"):
            plan_fetch(large)

    def test_a_disk_that_is_too_small(self, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(CapacityError, match="HF_HUB_CACHE"):
            plan_fetch(tiny())

    def test_a_disk_that_takes_no_more(self, hub: Hub, tmp_path: Path) -> None:
        """Really: a limit of the process on the size of files, as a stick's file system has one."""
        code = (
            "import resource, sys; from pathlib import Path; from ldp_export.hub.client import list_repository;"
            "from ldp_export.hub.download import download;"
            "(file,) = [f for f in list_repository('acme/tiny', 'main') if f.path == 'tiny_vae.pth'];"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); download(file, Path(sys.argv[1]))"
        )
        place = tmp_path / "small/tiny_vae.pth"
        made = subprocess.run([sys.executable, "-c", code, place], capture_output=True, text=True, check=False)
        assert "CapacityError: the disk of" in made.stderr
        assert "takes no file of this size" in made.stderr
        assert not place.exists()

    @pytest.mark.parametrize("name", ["infinity-shapes", "infinity-layer16"])
    def test_what_no_hub_holds(self, name: str) -> None:
        with pytest.raises(ConfigError, match="nothing to fetch"):
            plan_fetch(registry.find_model(name))


class TestCommandLine:
    def test_dry_run_downloads_nothing(self, hub: Hub, tmp_path: Path) -> None:
        plan = json.loads(run("fetch", NAME, "--dry-run", "--json").output)
        assert plan["bytes_to_fetch"] == plan["bytes"] > 0
        assert {file["path"] for file in plan["files"]} >= {"tiny_reg.pth", "tiny_vae.pth", "tokenizer.json"}
        assert plan["revisions"] == {"acme/tiny": COMMIT, "acme/t5": COMMIT}
        assert not hub.downloads()
        assert not (tmp_path / "cache").exists()
        assert "tiny_reg.pth" in run("fetch", NAME, "--dry-run").output

    def test_fetch_then_models_then_resolve(self, hub: Hub) -> None:
        assert _state(NAME) == ("absent", 0)
        result = run("fetch", NAME, "--json")
        assert result.exit_code == 0, result.output
        events = [json.loads(line)["progress"] for line in result.output.splitlines() if line.startswith('{"progress"')]
        assert {event["state"] for event in events} >= {"started", "finished"}
        state, size = _state(NAME)
        assert state == "complete"
        assert size > 400_000
        assert resolve_model(NAME)[1].text_encoder is not None

    def test_build_by_name_fetches_what_is_missing(self, hub: Hub, tmp_path: Path) -> None:
        dry = run("build", "--model", NAME, "--output", tmp_path / "bundle", "--dry-run", "--json")
        assert dry.exit_code == 0, dry.output
        assert json.loads(dry.output)["fetch"]["bytes_to_fetch"] > 0
        shown = run("build", "--model", NAME, "--output", tmp_path / "bundle", "--dry-run")
        assert "tiny_reg.pth" in shown.output
        assert not hub.downloads()
        made = run("build", "--model", NAME, "--output", tmp_path / "bundle", "--size", "0.06M", "--json")
        assert made.exit_code == 0, made.output
        assert hub.downloads()
        drawn = run("generate", tmp_path / "bundle", "a red circle", "--output", tmp_path / "x.png")
        assert drawn.exit_code == 0, drawn.output

    def test_a_converted_folder_needs_no_network(self, hub: Hub, tmp_path: Path) -> None:
        folder = tmp_path / "carried"
        assert run("fetch", NAME, "--precision", "bfloat16").exit_code == ConfigError.exit_code
        result = run("fetch", NAME, "--local-dir", folder, "--precision", "bfloat16")
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in folder.iterdir()) == [
            "converted.json",
            "text_encoder",
            "transformer",
            "vae.safetensors",
        ]
        hub.requests.clear()
        model, sources = resolve_model(NAME, local_dir=folder)
        assert model == tiny()
        state = read_state(sources.transformer)
        assert state["block_chunks.0.module.0.ffn.fc1.weight"].dtype == torch.bfloat16
        assert state["head.weight"].dtype == torch.float32
        dry = run("build", "--model", NAME, "--local-dir", folder, "--output", tmp_path / "b", "--dry-run", "--json")
        assert dry.exit_code == 0, dry.output
        assert not hub.requests

    def test_a_folder_converted_in_part_is_not_taken_for_the_whole(self, hub: Hub, tmp_path: Path) -> None:
        sources, folder = fetch(plan_fetch(tiny())), tmp_path / "carried"

        def stop(event: ProgressEvent) -> None:
            if event.index == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert_model(sources, folder, "bfloat16", stop)
        with pytest.raises(CheckpointError, match="lacks"):
            find_sources(tiny(), local_dir=folder)
        with pytest.raises(ConfigError, match="of an earlier conversion: bfloat16, not float16"):
            convert_model(sources, folder, "float16")
        assert convert_model(sources, folder, "bfloat16") == find_sources(tiny(), local_dir=folder)

    def test_what_was_converted_otherwise_is_not_taken(self, hub: Hub, tmp_path: Path) -> None:
        """Float32 for bfloat16, an older revision for a newer one, or files that nothing is noted of."""
        folder, bfloat16 = tmp_path / "carried", ("--precision", "bfloat16")
        assert run("fetch", NAME, "--local-dir", folder, "--precision", "float32").exit_code == 0
        again = run("fetch", NAME, "--local-dir", folder, *bfloat16)
        assert again.exit_code == ConfigError.exit_code
        assert "earlier conversion: float32, not bfloat16" in again.output
        record = json.loads((folder / RECORD).read_text())
        assert record["revisions"] == {"acme/tiny": COMMIT, "acme/t5": COMMIT}
        record["revisions"]["acme/tiny"] = 40 * "0"
        (folder / RECORD).write_text(json.dumps(record))
        newer = run("fetch", NAME, "--local-dir", folder, "--precision", "float32")
        assert newer.exit_code == ConfigError.exit_code
        assert f"acme/tiny at {12 * '0'}, not {COMMIT[:12]}" in newer.output
        (folder / RECORD).unlink()
        assert "an unknown precision, not" in run("fetch", NAME, "--local-dir", folder, *bfloat16).output

    def test_room_for_the_conversion_is_asked_for_first(
        self, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All of it on one disk: what is downloaded, and what is made of it."""
        listed = plan_fetch(tiny())
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=listed.bytes_to_fetch + 1000))
        refused = run("fetch", NAME, "--local-dir", tmp_path / "carried", "--precision", "bfloat16")
        assert refused.exit_code == CapacityError.exit_code
        assert "converting infinity-tiny takes" in refused.output
        assert not hub.downloads()

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--size", "3M"],
            ["--chunk", "0"],
            ["--precision", "bfloat16"],
            ["--temperature", "0"],
            ["--text-encoder", "absent"],
            ["--kv-cache", "static", "--backend", "torch"],
        ],
    )
    def test_a_build_that_will_be_refused_fetches_nothing(self, hub: Hub, tmp_path: Path, arguments: list[str]) -> None:
        result = run("build", "--model", NAME, "--output", tmp_path / "bundle", *arguments)
        assert result.exit_code != 0, result.output
        assert "error: " in result.output
        assert not hub.downloads()

    def test_errors_have_their_exit_codes(self, hub: Hub) -> None:
        assert run("fetch", "infinity-shapes").exit_code == ConfigError.exit_code
        hub.fault.replace = {"tiny_reg.pth"}
        assert run("fetch", NAME).exit_code == IntegrityError.exit_code
        hub.fault.status = 500
        result = run("fetch", NAME)
        assert result.exit_code == HubError.exit_code
        assert "hint:" in result.output

    def test_offline(self, hub: Hub) -> None:
        """The client reads HF_HUB_OFFLINE when it is imported, hence another process."""
        import os

        code = "from ldp_export.cli import main; main()"
        made = subprocess.run(
            [sys.executable, "-c", code, "fetch", "infinity-2b"],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == HubError.exit_code, made.stderr
        assert "HF_HUB_OFFLINE" in made.stderr


def _state(name: str) -> tuple[str, int]:
    rows = json.loads(run("models", "--json").output)
    row = next(row for row in rows if row["name"] == name)
    return row["local"], row["local_bytes"]


def test_git_ids_are_gits_own(tmp_path: Path) -> None:
    from ldp_export.hub.client import git_blob_id

    (tmp_path / "hello").write_bytes(b"hello\n")
    assert git_blob_id(tmp_path / "hello") == "ce013625030ba8dba906f756967f9e9ca394464a"
    file = HubFile("a/b", "main", COMMIT, "hello", 6, git_blob_id(tmp_path / "hello"), None)
    assert file.matches(tmp_path / "hello")

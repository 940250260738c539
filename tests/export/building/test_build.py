"""Builds that fail, are killed, resume, or are repeated: the previous bundle serves throughout."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
from helpers import fake_build as fake_build_module
from helpers.fake_build import fake_build, refused, sources_in
from helpers.samples import TRANSFORMER, plan, spec, write_sources
from helpers.waiting import HANGS
from hypothesis import given
from hypothesis import strategies as st
from ldp_runtime import Pipeline, open_bundle
from ldp_runtime.bundle.files import CURRENT, MANIFEST, VERSIONS, hash_file
from ldp_runtime.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    EngineBuildError,
    IncompatibleBundleError,
    VerificationError,
)
from ldp_runtime.system.disk import scratch_path
from safetensors import SafetensorError

from ldp_export.builders.onnxruntime import OnnxRuntimeBuilder
from ldp_export.building.build import BuildOptions, BuildPlan, build, plan_build
from ldp_export.building.cache import Stage, run_stages
from ldp_export.building.estimate import estimate_build
from ldp_export.building.stages import BuildStages
from ldp_export.checkpoints.sources import Sources, hash_part
from ldp_export.families.base import graph_blocks, graph_kind
from ldp_export.models.sizes import InfinityConfig


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def other_sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    return write_sources(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


def contents(root: Path) -> dict[str, str]:
    """Hashes of all files of the version that serves, which must be whole."""
    bundle = open_bundle(root)
    assert bundle.state == "verified"
    return {str(p.relative_to(root)): hash_file(p) for p in sorted(bundle.folder.rglob("*")) if p.is_file()}


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob(".tmp-*"))


def fake_build_in_a_process() -> str:
    """Code for `python -c`, for builds that are killed."""
    return f"import sys; sys.path[:0] = {sys.path!r}; from helpers import fake_build; fake_build.main(*sys.argv[1:])"


class TestResuming:
    def test_unchanged_inputs_are_not_built_again(self, sources: Sources, output: Path) -> None:
        first, states = fake_build(sources, output)
        assert set(states.values()) == {"finished"}
        before = contents(output)
        second, states = fake_build(sources, output)
        assert {stage: state for stage, state in states.items() if state != "reused"} == {"verify": "finished"}
        assert second.manifest == first.manifest
        assert contents(output) == before

    def test_only_what_depends_on_a_change_is_built_again(
        self, sources: Sources, other_sources: Sources, output: Path
    ) -> None:
        fake_build(sources, output)
        _, states = fake_build(Sources(sources.transformer, other_sources.vae), output)
        assert {stage for stage, state in states.items() if state == "reused"} == {"prompt", "blocks"}

    def test_says_what_changed(self, sources: Sources, other_sources: Sources, output: Path) -> None:
        fake_build(sources, output)
        details: dict[str, str] = {}
        with fake_build_module.fakes():
            build(
                plan(other_sources, output),
                lambda event: details.setdefault(event.stage, event.detail) and None,
            )
        assert details["prompt"] == "changed: sources"

    @pytest.mark.parametrize("stage", ["prompt", "blocks", "decoder", "reference", "verify"])
    def test_failed_stage(self, sources: Sources, other_sources: Sources, output: Path, stage: str) -> None:
        fake_build(sources, output)
        before = contents(output)

        def fail(name: str) -> None:
            if name == stage:
                raise RuntimeError("the exporter broke")

        with pytest.raises(RuntimeError, match="the exporter broke"):
            fake_build(other_sources, output, fail)
        assert contents(output) == before
        assert not leftovers(output)
        order = ["prompt", "blocks", "decoder", "constants", "reference", "verify"]
        _, states = fake_build(other_sources, output)
        done = order[: order.index(stage)]
        assert [name for name in order if states[name] == "reused"] == done
        assert contents(output) != before

    @pytest.mark.parametrize("stage", ["blocks", "verify"])
    def test_killed(self, sources: Sources, other_sources: Sources, output: Path, stage: str) -> None:
        """SIGKILL in the middle of a stage: nothing gets to clean up."""
        fake_build(sources, output)
        before = contents(output)
        code = (
            f"import sys; sys.path[:0] = {sys.path!r}; from helpers import fake_build; fake_build.main(*sys.argv[1:])"
        )
        folder = str(other_sources.transformer.parent)
        process = subprocess.Popen(
            [sys.executable, "-c", code, folder, str(output), stage], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        error = refused(other_sources, output)  # the lock is held
        assert isinstance(error, ConfigError)
        assert "another build" in str(error)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=HANGS)
        process.stdout.close()
        assert contents(output) == before
        _, states = fake_build(other_sources, output)
        assert states["prompt"] == "reused"
        assert states["decoder"] == ("finished" if stage == "blocks" else "reused")
        assert not leftovers(output)

    @pytest.mark.parametrize("stage", ["prompt", "reference", "verify"])
    def test_interrupted(self, sources: Sources, other_sources: Sources, output: Path, stage: str) -> None:
        """Ctrl-C: the stage ends, nothing half-written stays, and the next run resumes."""
        fake_build(sources, output)
        before = contents(output)
        code = (
            f"import sys; sys.path[:0] = {sys.path!r}; from helpers import fake_build; fake_build.main(*sys.argv[1:])"
        )
        command = [sys.executable, "-c", code, str(other_sources.transformer.parent), str(output), stage]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "hanging\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=HANGS) != 0
        process.stdout.close()
        assert contents(output) == before
        assert not leftovers(output)
        _, states = fake_build(other_sources, output)
        assert states["prompt"] == ("finished" if stage == "prompt" else "reused")

    def test_damaged_stage_is_built_again(self, sources: Sources, output: Path) -> None:
        fake_build(sources, output)
        (stage,) = (output / "stages").glob("blocks-*")
        (stage / "model.onnx").unlink()
        _, states = fake_build(sources, output)
        assert (states["blocks"], states["prompt"]) == ("finished", "reused")

    @pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(b"wrong")])
    def test_damaged_bundle_is_mended_by_a_rebuild(
        self, sources: Sources, output: Path, damage: Callable[[Path], object]
    ) -> None:
        """As the error's hint says. Stages and versions share files, so both may be damaged."""
        bundle, _ = fake_build(sources, output)
        before = contents(output)
        damage(bundle.path("decoder/weights.safetensors"))
        fake_build(sources, output)
        assert contents(output) == before

    def test_force_builds_everything(self, sources: Sources, output: Path) -> None:
        fake_build(sources, output)
        with fake_build_module.fakes():
            states: dict[str, str] = {}
            forced = replace(plan(sources, output), options=BuildOptions(output, force=True))
            build(forced, lambda event: states.update({event.stage: event.state}))
        assert set(states.values()) == {"finished"}

    def test_previous_version_is_kept_and_older_ones_go(self, sources: Sources, output: Path, tmp_path: Path) -> None:
        versions = [fake_build(write_sources(tmp_path / str(i), seed=i), output)[0].folder.name for i in range(3)]
        assert {folder.name for folder in (output / VERSIONS).iterdir()} == set(versions[1:])
        assert (output / CURRENT).read_text().strip() == versions[2]
        assert len(list((output / "stages").iterdir())) == 5  # of the last build only
        assert {report.stem for report in (output / "reports").iterdir()} == set(versions[1:])

    def test_previous_version_stays_after_a_rebuild_of_the_same(self, output: Path, tmp_path: Path) -> None:
        made = [write_sources(tmp_path / str(i), seed=i) for i in range(2)]
        names = [fake_build(each, output)[0].folder.name for each in (*made, made[1], made[1])]
        assert {folder.name for folder in (output / VERSIONS).iterdir()} == set(names)
        refused(write_sources(tmp_path / "wrong", seed=2), output, passes=False)
        fake_build(made[1], output)
        assert {folder.name for folder in (output / VERSIONS).iterdir()} == set(names), "not the rejected one"
        (output / "PREVIOUS").unlink()  # a bundle of an earlier release has none
        fake_build(made[1], output)
        assert {folder.name for folder in (output / VERSIONS).iterdir()} == set(names)
        fake_build(made[0], output)  # back again
        assert (output / "PREVIOUS").read_text().strip() == names[1]

    def test_files_and_folders_are_synced_before_current_names_them(
        self, sources: Sources, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        synced: list[tuple[int, int]] = []
        named_when: list[int] = []
        fsync, rename = os.fsync, Path.replace

        def note(descriptor: int) -> None:
            status = os.fstat(descriptor)
            synced.append((status.st_dev, status.st_ino))
            fsync(descriptor)

        def renamed(path: Path, target: Path) -> Path:
            if Path(target).name == CURRENT:
                named_when.append(len(synced))
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", note)
        monkeypatch.setattr(Path, "replace", renamed)
        bundle, _ = fake_build(sources, output)
        (moment,) = named_when
        before = set(synced[:moment])
        for path in (bundle.folder, *bundle.folder.rglob("*"), output / VERSIONS):
            assert (path.stat().st_dev, path.stat().st_ino) in before, path
        assert (output.stat().st_dev, output.stat().st_ino) in set(synced[moment:])

    @pytest.mark.parametrize(
        ("umask", "file", "folder"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)]
    )
    def test_modes_follow_the_umask(self, sources: Sources, output: Path, umask: int, file: int, folder: int) -> None:
        before = os.umask(umask)
        try:
            bundle, _ = fake_build(sources, output)
        finally:
            os.umask(before)
        paths = [path for path in output.rglob("*") if "stages" not in path.parts]
        assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_file()} == {file}
        assert {stat.S_IMODE(path.stat().st_mode) for path in paths if path.is_dir()} == {folder}
        assert bundle.state == "verified"

    def test_a_disk_without_locks(self, sources: Sources, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As some that lie on another machine: flock itself fails."""
        import fcntl

        def no_locks(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", no_locks)
        error = refused(sources, output)
        assert isinstance(error, ConfigError)
        assert "does not support locks" in error.message
        assert "local disk" in str(error.hint)


class TestFullDisk:
    @pytest.mark.parametrize("stage", ["prompt", "decoder", "reference", "verify"])
    @pytest.mark.parametrize(
        "error",
        [
            OSError(errno.ENOSPC, "No space left on device"),
            OSError(errno.EDQUOT, "Disk quota exceeded"),
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        ],
        ids=["enospc", "quota", "safetensors"],
    )
    def test_full_disk(
        self, sources: Sources, other_sources: Sources, output: Path, stage: str, error: Exception
    ) -> None:
        fake_build(sources, output)
        before = contents(output)

        def fail(name: str) -> None:
            if name == stage:
                raise error

        found = refused(other_sources, output, on_stage=fail)
        assert isinstance(found, EngineBuildError)
        assert "is full" in str(found)
        assert contents(output) == before
        assert not leftovers(output)

    def test_a_disk_that_takes_no_more(self, sources: Sources, other_sources: Sources, output: Path) -> None:
        """Really: a limit of the process on the size of files."""
        fake_build(sources, output)
        before = contents(output)
        limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5)); "
        folder, code = str(other_sources.transformer.parent), limit + fake_build_in_a_process()
        made = subprocess.run(
            [sys.executable, "-c", code, folder, str(output), "never"], capture_output=True, text=True, check=False
        )
        assert "EngineBuildError: the disk of" in made.stderr
        assert "takes no file of this size" in made.stderr
        assert contents(output) == before
        assert not leftovers(output)

    @pytest.mark.parametrize("step", ["assemble_version", "write_report", "make_current"])
    def test_full_disk_while_publishing(
        self, sources: Sources, other_sources: Sources, output: Path, step: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fake_build(sources, output)
        before = contents(output)

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(f"ldp_export.building.build.{step}", full)
            assert isinstance(refused(other_sources, output), EngineBuildError)
        assert contents(output) == before
        _, states = fake_build(other_sources, output)
        assert {state for stage, state in states.items() if stage != "verify"} == {"reused"}
        assert contents(output) != before

    def test_too_small_a_disk_is_found_before_work(
        self, sources: Sources, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 10**5))
        error = refused(sources, output)
        assert isinstance(error, CapacityError)
        assert "0.10 MB are free" in str(error)
        assert not output.exists()

    def test_what_is_done_already_needs_no_room(
        self, sources: Sources, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The full disk said that the next run resumes."""

        def fail(name: str) -> None:
            if name == "reference":
                raise OSError(errno.ENOSPC, "No space left on device")

        refused(sources, output, on_stage=fail)
        needed = estimate_build(plan(sources, output)).disk
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(needed, 1, needed - 1))
        assert isinstance(refused(sources, output.with_name("other")), CapacityError)
        _, states = fake_build(sources, output)
        assert states["decoder"] == "reused"

    def test_too_little_memory_is_found_before_work(
        self, sources: Sources, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        available = psutil.virtual_memory()._replace(available=10**8)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
        error = refused(sources, output)
        assert isinstance(error, CapacityError)
        assert "0.10 GB are available" in str(error)
        assert "--chunk" in str(error)
        assert not output.exists()


class TestVerification:
    def test_failure_leaves_the_previous_bundle(self, sources: Sources, other_sources: Sources, output: Path) -> None:
        fake_build(sources, output)
        before = contents(output)
        error = refused(other_sources, output, passes=False)
        assert isinstance(error, VerificationError)
        assert "1 of 1 checks" in str(error)
        assert "all logits: 1 exceeds 1e-05" in str(error)
        assert contents(output) == before
        (rejected,) = [v for v in (output / VERSIONS).iterdir() if v.name != open_bundle(output).folder.name]
        assert open_bundle(rejected).state == "rejected"
        with pytest.raises(IncompatibleBundleError, match="failed verification"):
            Pipeline.load(rejected)

    def test_engines_are_verified_on_the_device_that_runs_them(self, sources: Sources, output: Path) -> None:
        """A GPU's on the GPU: on a CPU they cannot even be opened."""
        for device in ("cuda", None):
            builder = replace(OnnxRuntimeBuilder(), verified_on=device)
            with fake_build_module.fakes():
                bundle, report = build(plan_build(spec(), sources, BuildOptions(output, builder=builder)))
            assert (report and report.device) == device
        assert bundle.state == "verified", "by the build before"

    def test_first_build_that_fails_serves_nothing(self, sources: Sources, output: Path) -> None:
        refused(sources, output, passes=False)
        with pytest.raises(ConfigError, match="no bundle at"):
            open_bundle(output)
        fake_build(sources, output)  # the next one that passes does
        assert contents(output)


class TestOutput:
    def test_foreign_files(self, sources: Sources, output: Path) -> None:
        output.mkdir()
        (output / "thesis.tex").write_text("precious")
        with pytest.raises(ConfigError, match=r"holds other things: thesis\.tex"):
            plan(sources, output)
        assert [p.name for p in output.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("name", ["versions", "stages"])
    def test_someones_own_versions_and_stages(self, sources: Sources, output: Path, name: str) -> None:
        """A folder that is no bundle is not taken for one, and nothing in it is deleted."""
        precious = output / name / "2024-thesis/chapter.tex"
        precious.parent.mkdir(parents=True)
        precious.write_text("precious")
        with pytest.raises(ConfigError, match=f"holds other things: {name}/2024-thesis"):
            plan(sources, output)
        assert precious.read_text() == "precious"

    def test_only_what_is_ours_is_deleted(self, sources: Sources, other_sources: Sources, output: Path) -> None:
        """Names like ours, notes in our folders, links and hidden files: all of them stay, also with --force."""
        bundle, _ = fake_build(sources, output)
        like_ours = (
            output / VERSIONS / "0123456789abcdef/x.txt",
            output / VERSIONS / ".tmp-notes/x.txt",
            output / "stages/blocks-0123456789abcdef/x.txt",
            output / "reports/notes.txt",
            bundle.folder / "notes.txt",
            next((output / "stages").glob("prompt-*")) / "notes.txt",
        )
        for path in like_ours:
            path.parent.mkdir(exist_ok=True)
            path.write_text("precious")
        elsewhere = output.with_name("elsewhere")
        elsewhere.mkdir()
        (elsewhere / "x.txt").write_text("precious")
        for link in (output / "latest", output / VERSIONS / "fedcba9876543210", output / "stages/x-fedcba9876543210"):
            link.symlink_to(elsewhere)
        for force in (False, True, False):
            with fake_build_module.fakes():
                build(replace(plan(other_sources, output), options=BuildOptions(output, force=force)))
        with fake_build_module.fakes():
            build(plan(sources, output.with_name("third")))
        fake_build(Sources(sources.transformer, other_sources.vae), output)
        assert {path.read_text() for path in (*like_ours, elsewhere / "x.txt")} == {"precious"}
        assert not bundle.path(MANIFEST).exists(), "the rest of an old version is gone"

    def test_leftovers_of_a_killed_build_are_not_foreign(self, sources: Sources, output: Path) -> None:
        fake_build(sources, output)
        for folder in (output, output / "reports", output / "stages", output / VERSIONS):
            scratch_path(folder).write_text("half a file")
        fake_build(sources, output)
        assert not leftovers(output)

    def test_file_in_the_way(self, sources: Sources, output: Path) -> None:
        output.write_text("a file")
        with pytest.raises(ConfigError, match="is a file"):
            plan(sources, output)
        with pytest.raises(ConfigError, match="is a file"):
            plan(sources, output / "below")

    def test_two_builds_at_once(self, sources: Sources, output: Path) -> None:
        begun, go_on = threading.Event(), threading.Event()

        def wait(name: str) -> None:
            if name == "blocks":
                begun.set()
                go_on.wait(timeout=HANGS)

        first = threading.Thread(target=lambda: fake_build(sources, output, wait))
        first.start()
        begun.wait(timeout=HANGS)
        second = refused(sources, output)
        go_on.set()
        first.join(timeout=HANGS)
        assert isinstance(second, ConfigError)
        assert "another build is writing" in str(second)
        assert contents(output)


class TestPlan:
    @pytest.mark.parametrize(
        ("options", "message"),
        [({"size": "2M"}, "unknown size"), ({"chunk": 0}, "at least one block")],
    )
    def test_impossible_options(self, sources: Sources, output: Path, options: dict, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            plan_build(spec(), sources, BuildOptions(output, **options))

    def test_more_scales_than_the_model_embeds(self, sources: Sources, output: Path) -> None:
        few = replace(TRANSFORMER, levels=9)
        with pytest.raises(ConfigError, match=r"embeds 9 scales, 0\.25M has 10"):
            plan_build(spec(few), sources, BuildOptions(output, size="0.25M"))

    def test_chunks_cover_all_blocks(self, sources: Sources, output: Path) -> None:
        deep = spec(replace(TRANSFORMER, depth=7, chunks=1))
        for chunk in range(1, 9):
            names = BuildPlan(deep, sources, BuildOptions(output, chunk=chunk)).graph_names
            for kind in ("prompt", "blocks"):
                chunks = [graph_blocks(name, 7) for name in names if graph_kind(name) == kind]
                assert [i for first, last in chunks for i in range(first, last)] == list(range(7))
        names = BuildPlan(deep, sources, BuildOptions(output, chunk=3)).graph_names
        bounds = ("0_3", "3_6", "6_7")
        assert names == [*(f"prompt_{b}" for b in bounds), *(f"blocks_{b}" for b in bounds), "decoder"]
        json.dumps(plan(sources, output).to_json())

    def test_missing_sources(self, sources: Sources, output: Path) -> None:
        absent = Sources(sources.transformer, sources.vae.with_name("absent.safetensors"))
        error = refused(absent, output)
        assert isinstance(error, CheckpointError)
        assert "absent.safetensors" in str(error)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
inputs = st.dictionaries(st.text(max_size=3), json_values, max_size=4)


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def stage(name: str, values: dict) -> Stage:
    return Stage(name, values, lambda folder, say: None)


class TestKeys:
    @given(inputs, inputs)
    def test_keys_differ_exactly_when_inputs_do(self, a: dict, b: dict) -> None:
        assert (stage("x", a).key == stage("x", b).key) == (canonical(a) == canonical(b))
        assert stage("x", a).key != stage("y", a).key
        assert stage("x", a).key == stage("x", dict(reversed(a.items()))).key

    @pytest.mark.parametrize("field", asdict(TRANSFORMER))
    def test_any_size_of_the_model_changes_its_stages(
        self, sources: Sources, output: Path, field: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(InfinityConfig, "__post_init__", lambda self: None)
        changed = replace(TRANSFORMER, **{field: getattr(TRANSFORMER, field) * 2})
        before, after = self.keys(sources, output, TRANSFORMER), self.keys(sources, output, changed)
        assert before["decoder"] == after["decoder"]
        assert all(before[name] != after[name] for name in ("prompt", "blocks", "constants", "reference"))

    def test_toolchain_and_sources_count(
        self, sources: Sources, other_sources: Sources, output: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = self.keys(sources, output, TRANSFORMER)
        assert self.keys(sources, output, TRANSFORMER) == before
        assert not set(self.keys(other_sources, output, TRANSFORMER).values()) & set(before.values())
        monkeypatch.setattr("ldp_export.building.stages.toolchain", lambda: {"torch": "99"})
        assert not set(self.keys(sources, output, TRANSFORMER).values()) & set(before.values())

    def keys(self, sources: Sources, output: Path, config: InfinityConfig) -> dict[str, str]:
        work = BuildStages(BuildPlan(spec(config), sources, BuildOptions(output)))
        return {stage.name: stage.key for stage in work.stages()}

    def test_hash_of_a_folder_sees_what_is_read_and_nothing_else(self, sources: Sources, tmp_path: Path) -> None:
        """What systems, hubs and people leave beside the weights changes no bundle."""
        folder = tmp_path / "shards"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(sources.vae.read_bytes())
        (folder / "config.json").write_text("{}")
        before = hash_part(folder)
        for name in ("README.md", ".DS_Store", "._model.safetensors", "generation_config.json"):
            (folder / name).write_text("beside")
        (folder / ".cache").mkdir()
        (folder / ".cache/model.safetensors.metadata").write_text("beside")
        assert hash_part(folder) == before
        (folder / "config.json").write_text('{"a": 1}')
        seen = {before, hash_part(folder)}
        (folder / "model.safetensors").rename(folder / "b.safetensors")
        seen.add(hash_part(folder))
        (folder / "b.safetensors").write_bytes(sources.transformer.read_bytes())
        seen.add(hash_part(folder))
        assert len(seen) == 4
        assert hash_part(folder / "b.safetensors") == hash_file(sources.transformer)

    def test_hash_of_an_index_sees_its_shards(self, sources: Sources, tmp_path: Path) -> None:
        shard, index = tmp_path / "a.safetensors", tmp_path / "model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"x": shard.name}}))
        shard.write_bytes(sources.vae.read_bytes())
        before = hash_part(index)
        assert before == hash_part(tmp_path)
        shard.write_bytes(sources.transformer.read_bytes())
        assert hash_part(index) != before

    def test_a_stage_is_whole_or_not_there(self, tmp_path: Path) -> None:
        def half(folder: Path, say: Callable[[str], None]) -> None:
            (folder / "part").write_text("x")
            say("half way")
            raise ValueError("no")

        events: list[str] = []
        with pytest.raises(ValueError, match="no"):
            run_stages([Stage("s", {}, half)], tmp_path, lambda event: events.append(f"{event.state} {event.detail}"))
        assert list(tmp_path.iterdir()) == []
        assert events == ["started ", "advanced half way"]


def test_sources_are_found_in_a_folder(sources: Sources) -> None:
    assert sources_in(sources.transformer.parent) == sources
    assert sources.size() == sources.transformer.stat().st_size + sources.vae.stat().st_size

"""The comparison end to end on a tiny model. No test asserts a time."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from click.testing import CliRunner
from helpers.samples import spec
from helpers.shared import build_shared
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.errors import CapacityError, ConfigError
from rich.console import Console

from ldp_export.bench.measure import rotated, settling_calls, steps
from ldp_export.bench.plan import UNPRUNED, BenchPlan, plan_bench
from ldp_export.bench.process import Turns, WorkerProcess
from ldp_export.bench.result import SCHEMA, BenchResult
from ldp_export.bench.run import run_bench
from ldp_export.bench.table import print_result
from ldp_export.bench.worker import infinity
from ldp_export.bench.worker.messages import Job
from ldp_export.bench.worker.options import BenchOptions
from ldp_export.builders.onnxruntime import Int8Builder
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.checkpoints.sources import Sources
from ldp_export.cli.bench import command
from ldp_export.progress import ProgressEvent

_CANDIDATE = {
    "name",
    "policy",
    "batch",
    "p50_ms",
    "p95_ms",
    "speedup_vs_eager",
    "speedup_vs_unpruned",
    "psnr_db",
    "tokens_computed",
    "tokens_full",
}
_PROMPTS = ("a red circle", "a small blue square on a plain background")


def eager_files(sources: Sources) -> dict[str, Path | None]:
    return {"weights": sources.transformer, "vae": sources.vae, "text_encoder": sources.text_encoder}


@pytest.fixture(scope="module")
def events() -> list[ProgressEvent]:
    return []


@pytest.fixture(scope="module")
def result(small_bundle: Bundle, small_sources: Sources, events: list[ProgressEvent]) -> BenchResult:
    options = BenchOptions(
        prompts=_PROMPTS,
        policies=("ld", "skip:count=1", "none", " ld"),
        repeats=2,
        warmup=1,
        batch=(1, 2),
        threads=1,
        **eager_files(small_sources),  # pyright: ignore[reportArgumentType]
    )
    return run_bench([small_bundle.root or small_bundle.folder], options, events.append)


def test_result_has_the_promised_shape(result: BenchResult):
    plain = json.loads(json.dumps(result.to_json()))
    assert plain["schema"] == SCHEMA
    assert {"hardware", "software", "settings", "model", "candidates", "notes"} <= set(plain)
    assert {"cpu", "cores_physical", "memory_gib", "os", "gpu"} <= set(plain["hardware"])
    assert plain["model"]["random_weights"] is False
    assert all(set(candidate) >= _CANDIDATE for candidate in plain["candidates"])
    names = ["eager", "eager, hoisted", "engines", "engines + ld", "engines + skip:count=1"]
    assert [(c["name"], c["batch"]) for c in plain["candidates"]] == [(n, b) for b in (1, 2) for n in names]


def test_candidates_are_compared_with_each_other(result: BenchResult):
    eager, hoisted, engines, pruned, skipped = result.candidates[:5]
    assert hoisted.psnr_db is None
    for c in (eager, hoisted, engines, pruned, skipped):
        assert len(c.samples) == 2 * 2  # prompts x repetitions
        assert c.p95_ms >= c.p50_ms > 0
        assert c.cpu_p50_ms > 0
        assert c.peak_rss_mb > 0
        phases = c.phases_ms
        mean = sum(sample.wall_ms for sample in c.samples) / len(c.samples)
        assert phases.text + phases.blocks + phases.loop + phases.decode == pytest.approx(mean)
        assert min(phases.text, phases.blocks, phases.loop, phases.decode) > 0
        assert c.p99_ms >= c.p90_ms >= c.p50_ms
        scopes = c.scopes
        assert scopes["blocks"].p50_ms < scopes["image"].p50_ms <= scopes["prompt-to-image"].p50_ms == c.p50_ms
        assert all(sum(sample.scales_ms) == pytest.approx(sample.blocks_ms) for sample in c.samples)
        for k, scale in enumerate(c.scales):
            assert scale.blocks_ms == pytest.approx(median(sample.scales_ms[k] for sample in c.samples))
        assert c.flops > 0
        assert c.peak_share == pytest.approx(c.flops / (phases.blocks / 1e3) / (result.peak_gflops * 1e9))
        assert c.precision_psnr_db is None
        assert c.speedup_vs_eager is not None
        assert c.speedup_vs_unpruned is not None
    assert result.peak_gflops > 0
    assert pruned.flops < engines.flops == eager.flops == hoisted.flops
    assert [scale.scale for scale in eager.scales] == list(range(len(eager.scales)))
    assert len(skipped.scales) == len(eager.scales) - 1
    assert eager.speedup_vs_eager is not None
    assert eager.speedup_vs_eager.value == 1
    assert eager.psnr_db is None
    assert engines.psnr_db is None
    assert engines.tokens_computed == engines.tokens_full == eager.tokens_computed
    assert skipped.tokens_computed < skipped.tokens_full
    assert skipped.psnr_db is not None
    assert pruned.psnr_db is not None


def test_unpruned_engines_draw_what_eager_pytorch_draws(result: BenchResult):
    assert result.precision_loss is not None
    assert result.precision_loss.images == len(_PROMPTS)
    assert result.precision_loss.psnr_db > 30


def test_batch_does_not_change_the_quality(result: BenchResult):
    """Same prompts and seeds, so the same images: a batch of two holds both prompts."""
    single, double = (c for c in result.candidates if c.name == "engines + skip:count=1")
    assert double.tokens_computed == single.tokens_computed
    assert double.psnr_db == pytest.approx(single.psnr_db, abs=0.5)
    assert len(double.samples) == 2


def test_progress_is_counted(events: list[ProgressEvent], result: BenchResult):
    advanced = [event for event in events if event.state == "advanced"]
    assert [event.index for event in advanced] == list(range(advanced[0].count))
    assert {event.stage for event in advanced} == {"load", "warm up", "settle", "measure"}


def test_table_names_every_candidate(result: BenchResult):
    console = Console(record=True, width=140, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    print_result(result, console)
    text = console.export_text()
    for candidate in result.candidates:
        assert candidate.name in text


def test_bundle_without_text_encoder_draws_random_features(tiny_bundle: Bundle):
    """Through the command line: standard output is the JSON and nothing else."""
    arguments = [str(tiny_bundle.folder), "--no-eager", "--policy", "none", "--repeats", "1", "--warmup", "0", "--json"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    plain = json.loads(done.stdout)
    assert plain["settings"]["prompts"] is None
    assert plain["settings"]["prompt_embeds"]["tokens"] == 12
    assert any("no text encoder" in note for note in plain["notes"])
    (engines,) = plain["candidates"]
    assert engines["speedup_vs_eager"] is None
    assert engines["psnr_db"] is None
    assert plain["precision_loss"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policies": ("nonsense",)}, "unknown policy"),
        ({"policies": ("none:skip_last=99",)}, "leaves none"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"batch": (1, 0)}, "batch must be at least 1"),
        ({"batch": ()}, "batch must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"prompts": ()}, "empty prompt"),
        ({"prompts": (" ",)}, "empty prompt"),
        ({"weights": Path("w")}, "switched off"),
        ({"scope": "everything"}, "unknown scope 'everything'"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_senseless_options(small_bundle: Bundle, options: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        plan_bench([small_bundle.folder], BenchOptions(eager=False, **options))


def test_another_bundle_of_the_same_checkpoint(
    small_bundle: Bundle, small_sources: Sources, tiny_bundle: Bundle, tmp_path: Path
):
    """Its engines are candidates of their own, and what they change is told apart from what pruning costs."""
    with pytest.raises(ConfigError, match="measured already"):
        plan_bench([small_bundle.folder, small_bundle.folder], BenchOptions(eager=False))
    with pytest.raises(ConfigError, match="another checkpoint"):
        plan_bench([small_bundle.folder, tiny_bundle.folder], BenchOptions(eager=False))
    options = BuildOptions(tmp_path / "int8", builder=Int8Builder(decoder=True))
    other = build_shared(plan_build(spec(), small_sources, options))[0]
    asked = BenchOptions(
        policies=("skip:count=1",),
        prompts=_PROMPTS[:1],
        eager=False,
        share_engines=True,
        repeats=1,
        warmup=0,
        threads=1,
        scope="image",
    )
    result = run_bench([small_bundle.folder, other.folder], asked)
    by_name = {c.name: c for c in result.candidates}
    kind = "onnxruntime, int8 decoder"
    assert list(by_name) == ["engines", "engines + skip:count=1", kind, f"{kind} + skip:count=1"]
    unpruned, pruned = by_name[kind], by_name[f"{kind} + skip:count=1"]
    assert unpruned.psnr_db is None
    assert unpruned.precision_psnr_db is not None
    assert pruned.psnr_db == pytest.approx(by_name["engines + skip:count=1"].psnr_db, abs=3)
    assert pruned.p50_ms == pruned.scopes["image"].p50_ms
    assert result.settings["scope"] == "image"


def test_graphs_that_only_engines_have(small_bundle: Bundle, small_sources: Sources, monkeypatch: pytest.MonkeyPatch):
    """Keys and values written in place: eager PyTorch's own graphs have no such form."""
    plan = plan_bench([small_bundle.folder], BenchOptions(**eager_files(small_sources), policies=()))  # pyright: ignore
    assert list(plan.jobs(1)) == ["eager", "eager, hoisted", "engines"]
    monkeypatch.setattr(Manifest, "kv_cache", "static")
    assert list(plan.jobs(1)) == ["eager", "engines"]


def test_engines_loaded_once(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """For all their policies, which draw what they draw in processes of their own."""
    started: list[str] = []
    start = Turns.start

    def note(turns: Turns, name: str) -> WorkerProcess:
        started.append(name)
        return start(turns, name)

    monkeypatch.setattr(Turns, "start", note)
    policies, results = ("skip:count=1", "skip:count=2"), []
    for share in (True, False):
        started.clear()
        options = BenchOptions(
            policies=policies,
            prompts=_PROMPTS[:2],
            eager=False,
            share_engines=share,
            repeats=1,
            warmup=0,
            threads=1,
            scope="image",
        )
        results.append(run_bench([small_bundle.folder], options))
        assert len(started) == 1 + (1 if share else 3)  # one measures the machine's peak
    shared, apart = results
    for ours, theirs in zip(shared.candidates, apart.candidates, strict=True):
        assert (ours.name, ours.policy, ours.tokens_computed) == (theirs.name, theirs.policy, theirs.tokens_computed)
        assert ours.psnr_db == pytest.approx(theirs.psnr_db) if theirs.psnr_db is not None else ours.psnr_db is None
    assert any("shared a process" in text for text in shared.notes)
    assert not any("shared a process" in text for text in apart.notes)


def test_no_room_for_all_candidates(small_bundle: Bundle, monkeypatch: pytest.MonkeyPatch):
    """Said with what helps."""

    def refuse(worker: WorkerProcess, request: dict[str, object]) -> dict[str, object]:
        raise CapacityError("needs up to 2.01 GiB; 1.55 GiB is allowed", hint="no batch size fits")

    monkeypatch.setattr("ldp_export.bench.run.measure_peak", lambda plan: 1e9)
    monkeypatch.setattr(WorkerProcess, "ask", refuse)
    hints: list[str] = []
    for share in (False, True):
        with pytest.raises(CapacityError) as caught:
            run_bench(
                [small_bundle.folder],
                BenchOptions(policies=(), prompts=_PROMPTS[:1], eager=False, threads=1, share_engines=share),
            )
        hints.append(caught.value.hint or "")
    assert "--share-engines" in hints[0]
    assert hints[1] == "no batch size fits"


def test_wide_images(small_bundle: Bundle, small_sources: Sources):
    """Every candidate draws them, eager PyTorch included, and what is not drawn is refused before any work."""
    for ratio in (0.0, -1.0):
        with pytest.raises(ConfigError, match="aspect ratio"):
            plan_bench([small_bundle.folder], BenchOptions(eager=False, aspect_ratio=ratio))
    options = BenchOptions(
        policies=("skip:count=1",),
        prompts=_PROMPTS[:1],
        weights=small_sources.transformer,
        vae=small_sources.vae,
        text_encoder=small_sources.text_encoder,
        aspect_ratio=0.5,
        share_engines=True,
        repeats=1,
        warmup=0,
        threads=1,
    )
    result = run_bench([small_bundle.folder], options)
    schedule = small_bundle.manifest.schedule(0.5)
    assert result.model.image == tuple(side * 4 for side in schedule.final_grid)
    assert {c.tokens_full for c in result.candidates} == {schedule.total_tokens}
    assert result.model.image[0] < result.model.image[1]
    assert result.settings["aspect_ratio"] == 0.5
    assert result.precision_loss is not None
    assert result.precision_loss.psnr_db > 30


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(small_bundle: Bundle):
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        plan_bench([small_bundle.folder], BenchOptions(eager=False, device="cuda"))


def test_prompts_for_a_bundle_that_reads_none(tiny_bundle: Bundle):
    with pytest.raises(ConfigError, match="reads no prompts"):
        plan_bench([tiny_bundle.folder], BenchOptions(prompts=("a red circle",), eager=False))


def test_no_bundle(tmp_path: Path):
    with pytest.raises(ConfigError, match="no bundle"):
        plan_bench([tmp_path], BenchOptions())


def test_eager_needs_the_checkpoint(small_bundle: Bundle, small_sources: Sources):
    folder, weights, vae = small_bundle.folder, small_sources.transformer, small_sources.vae
    if small_bundle.manifest.model.name != "infinity-shapes":
        with pytest.raises(ConfigError, match="none of the registry"):
            plan_bench([folder], BenchOptions())
    with pytest.raises(ConfigError, match="together"):
        plan_bench([folder], BenchOptions(weights=weights))
    with pytest.raises(ConfigError, match="needs one too"):
        plan_bench([folder], BenchOptions(weights=weights, vae=vae))


def test_eager_needs_the_very_checkpoint(small_bundle: Bundle, small_sources: Sources, tmp_path: Path):
    other = tmp_path / "other.safetensors"
    content = bytearray(small_sources.transformer.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    with pytest.raises(ConfigError, match="not built from this checkpoint") as caught:
        plan_bench([small_bundle.folder], BenchOptions(**eager_files(small_sources) | {"weights": other}))  # pyright: ignore
    assert str(other) in caught.value.message
    assert str(small_sources.vae) not in caught.value.message


def plan(bundle: Bundle, prompts: int = 4) -> BenchPlan:
    texts = tuple(f"prompt {i}" for i in range(prompts))
    options = BenchOptions(prompts=texts, policies=("ld",), repeats=3, warmup=2, batch=(1, 3), threads=1, seed=7)
    return BenchPlan({UNPRUNED: bundle}, options)


def test_a_job_survives_its_way_to_the_worker(small_bundle: Bundle, tiny_bundle: Bundle):
    for bundle in (small_bundle, tiny_bundle):
        texts = ("a red circle",) if bundle.manifest.has_text_encoder else None
        options = BenchOptions(prompts=texts, batch=(2,), weights=Path("w"), threads=1)
        job = BenchPlan({UNPRUNED: bundle}, options).jobs(2)[UNPRUNED]
        sent = json.loads(json.dumps(job.to_json()))
        assert replace(Job.of_json(sent), options=replace(options, weights=Path("w"))) == job
        assert (job.embeds is None) == (texts is not None)


def test_groups_fill_the_last_batch_from_the_first_prompts(small_bundle: Bundle):
    groups = plan(small_bundle).groups(3)
    assert groups == [((0, 1, 2), (7, 8, 9)), ((3, 0, 1), (10, 11, 12))]


def test_steps_counts_every_call(small_bundle: Bundle):
    assert settling_calls(plan(small_bundle)) == 1
    assert steps(plan(small_bundle)) == 2 * (1 + 2 + 3 * (1 + 4)) + 2 * (1 + 2 + 3 * (1 + 2))


def test_rotation_gives_everyone_every_place():
    assert [rotated("abc", i)[0] for i in range(4)] == ["a", "b", "c", "a"]


def test_output_that_cannot_be_written_is_refused_first(tmp_path: Path):
    (tmp_path / "notes").write_text("a file where a folder is named")
    for output in (tmp_path, tmp_path / "notes" / "result.json"):
        done = CliRunner().invoke(command, [str(tmp_path), "--output", str(output)])
        assert isinstance(done.exception, ConfigError)
        assert "cannot write" in str(done.exception)


def test_prompts_file(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("\n  \n")
    done = CliRunner().invoke(command, [str(tmp_path), "--prompts-file", str(file)])
    assert isinstance(done.exception, ConfigError)
    assert "holds no prompt" in str(done.exception)


def test_help_is_cheap():
    code = "import sys, ldp_export.cli.bench; assert 'torch' not in sys.modules and 'rich' not in sys.modules"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert "Examples" in CliRunner().invoke(command, ["--help"]).output


def test_eager_is_in_the_bundles_precision(
    small_bundle: Bundle, small_sources: Sources, monkeypatch: pytest.MonkeyPatch
):
    """Both baselines compute in 16 bits where the engines do; what the original keeps in float32 stays so."""
    manifest = small_bundle.manifest.model_copy(update={"precision": "bfloat16"})
    monkeypatch.setattr(infinity, "open_bundle", lambda *_, **__: replace(small_bundle, manifest=manifest))
    job = plan(small_bundle).jobs(1)["engines"]
    options = replace(job.options, **eager_files(small_sources))  # pyright: ignore[reportArgumentType]
    job = replace(job, kind="eager", options=options)
    eager = infinity.EagerInfinity(job)
    kept = {name for name, p in eager.model.named_parameters() if p.dtype == torch.float32}
    assert {"head.weight", "head.bias"} <= kept
    assert not any("mat_qkv" in name or "fc1" in name for name in kept)
    images = eager.draw([0], [7]).images
    assert images.dtype == torch.float32
    assert images.isfinite().all()

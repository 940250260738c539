"""`python -m benchmarks.gpu`, to the end on a CPU with a tiny model and the compiler; nonsense is refused."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ldp_runtime.engines.blocks import Blocks, BlocksChunk
from ldp_runtime.engines.cache_plan import ModelShape
from ldp_runtime.engines.torch_compiled.fused.products import Matrix
from ldp_runtime.pruning.policy import Policy

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import candidates as gpu_candidates
from benchmarks.gpu import draw as gpu_draw
from benchmarks.gpu import kernels as gpu_kernels
from benchmarks.gpu import models as gpu_models
from benchmarks.gpu import options as gpu_options
from benchmarks.gpu import profile as gpu_profile
from benchmarks.gpu.record import Record
from benchmarks.report import gpu as gpu_results
from benchmarks.study import conversion, text_encoder
from ldp_export.bench.worker.eager import EagerEngine
from ldp_export.builders.torch_compiled.fused import block_weights
from ldp_export.graphs.infinity import InfinityBlocksGraph
from ldp_export.reference.infinity import InfinitySettings, generate

ROOT = Path(__file__).parents[3]
CPU = ["--device", "cpu", "--tiny"]


def test_tiny_model_to_the_end(tmp_path: Path) -> None:
    """In a process of its own, as it is used."""
    output = tmp_path / "gpu.json"
    arguments = [*CPU, "--batch", "1", "--repeats", "1", "--warmup", "0", "--minutes", "1e6", "--output", str(output)]
    paths = [str(ROOT), str(ROOT / "runtime"), str(ROOT / "calibration")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", *arguments], check=True, env=environment)
    result = json.loads(output.read_text())
    by_name = {entry["candidate"]: entry for entry in result["results"]}
    full, pruned = by_name["compiled, unpruned"], by_name["compiled, LD, no scale skipped"]
    assert full["row_tokens"] == 2 * 521
    assert by_name["compiled, control: stop guidance"]["compilations"] == 10  # three pieces of three kinds, the decoder
    assert by_name["compiled, LD, last two skipped"]["row_tokens"] < pruned["row_tokens"] < full["row_tokens"]
    assert {"eager", "control: stop guidance"} <= {name.removeprefix("compiled, ") for name in by_name}
    assert max(full["disagreement"]) < 0.02
    assert "study" in result["keep_from"]
    assert "| tiny | 1 | eager |" in gpu_results.page(result)


def test_nothing_new_begins_when_the_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("benchmarks.gpu.record.time.monotonic", lambda: now)
    record = Record(tmp_path / "gpu.json", 5.5)
    now += 60 * 5.5
    assert not record.time_is_up
    now += 1
    assert record.time_is_up


@pytest.fixture(scope="module")
def tiny() -> gpu_models.Model:
    (spec,) = gpu_options.specs(argparse.Namespace(tiny=True))
    return gpu_models.random_model(spec, torch.device("cpu"), "float32")


def concatenating(toolkit: gpu_draw.Toolkit) -> Blocks:
    """The blocks as they are exported: keys and values concatenated, a mask over the text."""
    model = toolkit.model
    config, graph = model.spec.transformer, InfinityBlocksGraph(model.transformer)
    names = graph.signature.input_names
    engine = EagerEngine("blocks", graph, names, graph.signature.output_names)
    shape = ModelShape(config.depth, config.width, config.heads, 2 * config.bits)
    return Blocks([BlocksChunk(engine, 0, config.depth, frozenset(names))], shape)


def images_and_logits(
    toolkit: gpu_draw.Toolkit, batch: int, policy: Policy
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    logits: list[torch.Tensor] = []
    images = toolkit.run(toolkit.images(batch, policy=policy), on_logits=lambda _, raw: logits.append(raw.clone()))
    return [image.latent for image in images], logits


def test_full_model_is_the_original_loop(tiny: gpu_models.Model) -> None:
    (latent,), logits = images_and_logits(gpu_draw.Toolkit(tiny, compiled=False, graphs=False), 1, Policy())
    spec = tiny.spec
    settings = InfinitySettings(spec.guidance, spec.temperature, gpu_draw.sampling_rule(tiny), seed=0)
    run = generate(tiny.transformer, [tiny.features], tiny.schedule, spec.layout, settings)
    torch.testing.assert_close(latent, run.latent[0], rtol=0, atol=0)
    for mine, raw in zip(logits, run.raw_logits, strict=True):
        torch.testing.assert_close(mine, raw, rtol=0, atol=3e-6)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "policy", [gpu_options.given((0.6, 0.5), 4), gpu_options.given((0.6, 0.5), None), Policy(skip_last=2)], ids=repr
)
def test_pruned_as_the_exported_graph(tiny: gpu_models.Model, batch: int, policy: Policy) -> None:
    toolkit = gpu_draw.Toolkit(tiny, compiled=False, graphs=False)
    latents, logits = images_and_logits(toolkit, batch, policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolkit, "blocks", concatenating(toolkit))
        expected, raw = images_and_logits(toolkit, batch, policy)
    for mine, theirs in zip(logits, raw, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=3e-6)
    for mine, theirs in zip(latents, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_rounded_weights_stay_near(tiny: gpu_models.Model) -> None:
    """In bfloat16 the pieces round where the original loop rounds: logits within a few steps of theirs."""
    half = gpu_models.random_model(tiny.spec, torch.device("cpu"))
    _, logits = images_and_logits(gpu_draw.Toolkit(half, compiled=False, graphs=False), 1, Policy())
    spec = half.spec
    settings = InfinitySettings(spec.guidance, spec.temperature, gpu_draw.sampling_rule(half), seed=0)
    run = generate(half.transformer, [half.features], half.schedule, spec.layout, settings)
    first = (logits[0] - run.raw_logits[0]).norm() / run.raw_logits[0].norm()
    assert first < 1e-2


def test_disagreement_is_rounding_alone(tiny: gpu_models.Model) -> None:
    bench = gpu_candidates.Bench(tiny)
    candidate = gpu_candidates.Candidate("plain", Policy(), compiled=False, graphs=False)
    assert len(bench.disagreement(candidate)) == len(tiny.schedule)
    assert max(bench.disagreement(candidate)) < 1e-5


def test_kernel_tables_are_summed_by_kind(tmp_path: Path) -> None:
    """As PyTorch's profiler writes them: padded columns, times in several units, a line that sums up."""
    heads = ["Name", "Self CPU %", "Self CUDA", "# of Calls"]
    rows = [
        ["nvjet_sm90_tst_256x128", "0.00%", "1.500s", "680"],
        ["sm90_xmma_fprop_implicit_gemm_bf16bf16", "0.00%", "2.000ms", "3"],
        ["cudnn_native_sdpa_sm90_flash_fprop_wgmma", "0.00%", "40.000ms", "8"],
        ["triton_red_fused_convolution_native_group_norm", "0.00%", "500.000us", "2"],
    ]
    lines = ["-" * 20, *("  ".join(f"{cell:>48}" for cell in row) for row in (heads, *rows)), "-" * 20]
    (tmp_path / "gpu-infinity-8b-eager-kernels.txt").write_text("\n".join([*lines, "Self CUDA time total: 1.600s"]))
    (found,) = gpu_kernels.read_tables(tmp_path)
    assert (found.model, found.loop, found.total) == ("infinity-8b", "eager", 1600)
    assert list(found.milliseconds.values()) == [40.0, 2.0, 1500.0, 0.5]
    assert list(found.launches.values()) == [8, 3, 680, 2]
    assert (
        "| infinity-8b | eager | 40 (8) | 2 (3) | 1500 (680) | 0 (2) | 58 | 1600 |" in gpu_kernels.section([found])[1]
    )
    assert gpu_kernels.section([]) == []


def test_work_is_counted(tiny: gpu_models.Model) -> None:
    config = tiny.spec.transformer
    weights = [m for m in block_weights(tiny.transformer.layers[0]) if isinstance(m, Matrix)]
    matrices = config.depth * sum(m.weight.numel() for m in weights)
    attention = 4 * config.width * config.depth
    one = 2 * (2 * matrices + attention)
    assert gpu_candidates.blocks_flops(config, [(1, 2)]) == one
    assert gpu_candidates.blocks_flops(config, [(1, 2), (4, 1)]) == one + 4 * (2 * matrices + 5 * attention)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*CPU, "--repeats", "0"], "take at least 1"),
        ([*CPU, "--minutes", "0"], "more than 0"),
        (["--device", "cpu"], "goes with --tiny"),
        ([*CPU, "--stop-scale", "4"], "goes with --keep"),
        ([*CPU, "--keep", "2"], "in [0, 1]"),
        ([*CPU, "--keep", "0.5", "--stop-scale", "9"], "no scale 9"),
        ([*CPU, "--keep-from", "absent.json"], "is not a policy profile"),
        ([*CPU, "--output", "no-such-folder/gpu.json"], "there is no folder"),
    ],
)
def test_refused_before_any_work(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu_options.parse(arguments, None)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_options.parse([], None)
    assert "no CUDA GPU" in capsys.readouterr().err


def test_cpu_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SystemExit):
        gpu_options.parse(CPU, None)
    assert "finds no C++ compiler" in capsys.readouterr().err


def test_a_failing_comparison_leaves_the_times(tiny: gpu_models.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bench: gpu_candidates.Bench, candidate: gpu_candidates.Candidate) -> list[float]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gpu_candidates.Bench, "disagreement", fail)
    unpruned = gpu_candidates.Candidate("plain", Policy(), compiled=False, graphs=False)
    entry = gpu.measure(gpu_candidates.Bench(tiny), unpruned, 1, argparse.Namespace(repeats=1, warmup=0))
    assert len(entry["samples"]) == 1
    assert "error" not in entry
    assert entry["disagreement_error"] == "OutOfMemoryError: CUDA out of memory"


def test_a_failing_profile_leaves_the_rest(tiny: gpu_models.Model, tmp_path: Path) -> None:
    """Errors of this toolkit, which are no RuntimeErrors, and files that cannot be written."""
    bench = gpu_candidates.Bench(tiny)
    gpu_profile.profile(bench, 1, tmp_path / "no-such-folder" / "gpu.json")
    assert not list(tmp_path.iterdir())


def test_folders_that_are_there_are_not_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept").write_text("")
    monkeypatch.setattr("sys.argv", ["script", "--folder", str(tmp_path)])
    for script in (text_encoder, conversion):
        with pytest.raises(SystemExit):
            script.main()
        assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "kept").exists()

"""Bundles that PyTorch compiled: built, verified and drawn with like any other, on the machine they were made on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.engine_runs import check_draws_without_exporter, engines_of
from helpers.samples import TRANSFORMER, spec, write_sources
from helpers.shared import build_shared
from ldp_runtime import Pipeline
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.manifest import TargetEntry
from ldp_runtime.engines.torch_compiled.engine import TorchCompiledEngine
from ldp_runtime.engines.torch_compiled.target import check_target, local_target
from ldp_runtime.errors import (
    EngineBuildError,
    IncompatibleBundleError,
    IntegrityError,
    InternalError,
    LdpError,
)
from torch import nn

from ldp_export.builders.base import Compiler, ExportedGraph
from ldp_export.builders.torch_compiled.builder import TorchBuilder
from ldp_export.building.build import BuildOptions, plan_build
from ldp_export.graphs.signature import Axis, GraphSignature, TensorSpec
from ldp_export.models.sizes import InfinityVaeConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """As small as it gets: three graphs to compile."""
    folder = tmp_path_factory.mktemp("torch")
    transformer = replace(TRANSFORMER, depth=1, chunks=1)
    vae = InfinityVaeConfig(bits=8, base_channels=32, channel_multipliers=(1, 1), res_blocks=1, stride=2)
    sources = write_sources(folder, transformer, vae)
    options = BuildOptions(folder / "bundle", builder=TorchBuilder())
    return build_shared(plan_build(spec(transformer, vae), sources, options))[0]


def test_bundle_is_verified_and_names_its_machine(compiled: Bundle):
    manifest = compiled.manifest
    assert compiled.state == "verified"
    assert manifest.backend == "torch"
    assert manifest.target == local_target(CPU)
    assert {Path(graph.file).name for graph in manifest.graphs.values()} == {"engine.pt2"}
    assert not any(name.endswith(".onnx") for name in manifest.files)


def test_draws_pruned_and_in_batches(compiled: Bundle):
    features = [torch.randn(5, 32, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    with Pipeline.load(compiled, threads=1) as pipe:
        both = pipe(prompt_embeds=features, seed=3, policy="ld", output_type="torch")
        alone = pipe(prompt_embeds=features[0], seed=3, policy="ld", output_type="torch")
        torch.testing.assert_close(both.images[:1], alone.images, atol=1e-4, rtol=0)
        assert both.traces[0].tokens < both.traces[0].tokens_full
        assert torch.get_num_threads() == 1


def test_engines_have_the_threads_that_pytorch_had_when_they_were_opened(compiled: Bundle):
    """Between their calls the pipeline keeps PyTorch at one."""
    seen: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Pipeline.load(compiled) as pipe:
            decoder = engines_of(pipe).decoder
            assert isinstance(decoder, TorchCompiledEngine)
            call = decoder._call
            assert call is not None
            decoder._call = lambda *given: (seen.append(torch.get_num_threads()), call(*given))[1]
            pipe(prompt_embeds=torch.randn(5, 32), seed=0, output_type="torch")
        assert seen == [2]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_compiled_engines_need_no_exporter(compiled: Bundle):
    check_draws_without_exporter(compiled)


def test_another_machine_is_refused_before_anything_is_opened(compiled: Bundle, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "__version__", "1.0")
    monkeypatch.setattr(TorchCompiledEngine, "__init__", lambda *_: pytest.fail("opened"))
    with pytest.raises(IncompatibleBundleError, match=r"PyTorch .*, here 1\.0"):
        Pipeline.load(compiled)


def test_package_that_is_none(compiled: Bundle, tmp_path: Path):
    broken = tmp_path / "engine.pt2"
    broken.write_bytes(b"nothing")
    with pytest.raises(IntegrityError, match="cannot load"):
        TorchCompiledEngine("decoder", broken, compiled.manifest.graphs["decoder"])


def test_closed_engine_and_wrong_shapes(compiled: Bundle):
    graph = compiled.manifest.graphs["decoder"]
    engine = TorchCompiledEngine("decoder", compiled.path(graph.file), graph, threads=1)
    with pytest.raises(InternalError, match=r"'latent' of 'decoder' is float32 \[1, 3, 2, 2\]"):
        engine.run({"latent": torch.zeros(1, 3, 2, 2)}, {"image": torch.empty(1, 3, 8, 8)})
    engine.close()
    with pytest.raises(LdpError, match="closed"):
        engine.run({}, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"library": "0.1"}, "PyTorch 0.1, here"),
        ({"system": "Plan9 vax"}, "system Plan9 vax, here"),
        ({"instructions": ("avx9000",)}, "instructions avx9000, which this processor lacks"),
        ({"compute_capabilities": ("9.0",)}, "compiled for 'cuda'"),
    ],
)
def test_targets_that_do_not_fit(change: dict, words: str):
    with pytest.raises(IncompatibleBundleError, match=words):
        check_target(local_target(CPU).model_copy(update=change), CPU)


def test_a_processor_that_can_do_more_will_do():
    fewer = local_target(CPU).instructions[:1]
    check_target(local_target(CPU).model_copy(update={"instructions": fewer}), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_before_work():
    with pytest.raises(IncompatibleBundleError, match="no CUDA GPU"):
        TorchBuilder("cuda").target()
    with pytest.raises(IncompatibleBundleError, match="compiled for 'cpu'"):
        check_target(local_target(CPU), torch.device("cuda"))
    target = TargetEntry(library=torch.__version__, compute_capabilities=("9.0",))
    with pytest.raises(IncompatibleBundleError, match="no CUDA GPU"):
        check_target(target, torch.device("cuda"))


class _Untraceable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if bool(x.sum() > 0) else x


def test_graph_that_cannot_be_compiled(tmp_path: Path):
    signature = GraphSignature("odd", (TensorSpec("x", (Axis.ROWS, 4)),), (TensorSpec("y", (Axis.ROWS, 4)),))
    builder = TorchBuilder()
    assert isinstance(builder, Compiler)
    with pytest.raises(EngineBuildError, match="could not compile the graph 'odd'"):
        builder.build(ExportedGraph(signature, tmp_path, _Untraceable, tmp_path), tmp_path, lambda _: None)

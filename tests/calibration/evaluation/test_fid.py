"""Fréchet distance against torchmetrics with a network of ours, in closed form, and by an ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from ldp_calibration.evaluation.fid import folder_features, frechet_distance, onnx_features
from ldp_runtime.errors import ConfigError, IntegrityError
from onnx import TensorProto, helper
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from ldp_export.cli import main


def test_distance_of_known_distributions() -> None:
    rng = np.random.default_rng(0)
    plain = rng.normal(size=(5000, 3))
    moved = plain * np.array([2.0, 1, 1]) + np.array([0, 3.0, 0])
    spread = plain[:, 0].std(ddof=1)
    assert frechet_distance(plain, plain) == pytest.approx(0, abs=1e-9)
    mean = np.square(moved.mean(0) - plain.mean(0)).sum()
    assert frechet_distance(moved, plain) == pytest.approx(mean + spread**2, rel=0.01)


def test_distance_is_that_of_torchmetrics() -> None:
    class Features(torch.nn.Module):
        num_features = 5

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return pictures.float().view(len(pictures), -1)[:, :5]

    pictures = torch.randint(0, 256, (2, 40, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    network = Features()
    metric = FrechetInceptionDistance(feature=network, input_img_size=(3, 4, 4)).set_dtype(torch.float64)
    metric.update(pictures[0], real=True)
    metric.update(pictures[1], real=False)
    found = frechet_distance(*(network(part).double().numpy() for part in pictures))
    assert found == pytest.approx(float(metric.compute()), rel=1e-6)


@pytest.mark.parametrize(("one", "other"), [((1, 3), (5, 3)), ((5, 3), (5, 4)), ((5,), (5, 3))])
def test_features_that_have_no_distance(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="have no distance"):
        frechet_distance(np.zeros(one), np.zeros(other))


def mean_network(path: Path, kind: int = TensorProto.UINT8, bad: bool = False) -> Path:
    """Network whose features are the mean of each channel."""
    given = helper.make_tensor_value_info("image", kind, [1, 3, "H", "W"])
    out = helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, 3])
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Log" if bad else "Identity", ["mean"], ["features"]),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    graph = helper.make_graph(nodes, "mean", [given], [out], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def pictures(folder: Path, seed: int, count: int = 6) -> Path:
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (8 + i, 9, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_folders_by_an_onnx_network(tmp_path: Path) -> None:
    one, other = pictures(tmp_path / "a", 0), pictures(tmp_path / "b", 1, 5)
    network = mean_network(tmp_path / "mean.onnx")
    features = folder_features(one, onnx_features(network))
    expected = [np.asarray(Image.open(one / f"{i}.png")).mean((0, 1)) for i in range(6)]
    np.testing.assert_allclose(features, expected, rtol=1e-5)
    made = CliRunner().invoke(main, ["evaluate", "fid", str(one), str(other), "--network", str(network), "--json"])
    assert made.exit_code == 0, made.output
    found = json.loads(made.stdout)
    assert (found["pictures"], found["reference_pictures"]) == (6, 5)
    assert found["fid"] == pytest.approx(frechet_distance(features, folder_features(other, onnx_features(network))))
    said = CliRunner().invoke(main, ["evaluate", "fid", str(one), str(other), "--network", str(network)])
    assert "numbers of pictures differ" in said.output


def test_networks_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no network"):
        onnx_features(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"text")
    with pytest.raises(IntegrityError, match="is no ONNX network"):
        onnx_features(tmp_path / "bad.onnx")
    with pytest.raises(ConfigError, match="one tensor"):
        onnx_features(mean_network(tmp_path / "float.onnx", TensorProto.FLOAT))
    black = tmp_path / "black"
    black.mkdir()
    Image.new("RGB", (4, 4)).save(black / "0.png")
    with pytest.raises(IntegrityError, match="are not finite"):
        folder_features(black, onnx_features(mean_network(tmp_path / "log.onnx", bad=True)))

"""The shape of the house: small folders, and arrows that only run down."""

from __future__ import annotations

from collections import Counter
from graphlib import CycleError, TopologicalSorter

from helpers.tree import arrows, modules, room

#: Most modules of one folder.
MOST_MODULES = 15
#: Rooms from the ground up: a module imports from its own room and from rooms before it, never from one behind it.
#: A package's own modules are its ground floor.
FLOORS = (
    "ldp_runtime",
    "ldp_runtime.system",
    "ldp_runtime.architecture",
    "ldp_runtime.pruning",
    "ldp_runtime.bundle",
    "ldp_runtime.engines",
    "ldp_runtime.engines.tensorrt",
    "ldp_runtime.engines.torch_compiled",
    "ldp_runtime.engines.torch_compiled.fused",
    "ldp_runtime.families",
    "ldp_runtime.pipeline",
    "ldp_serving",
    "ldp_serving.front",
    "ldp_serving.triton",
    "ldp_serving.ray_app",
    "ldp_calibration.shapes",
    "ldp_calibration",
    "ldp_calibration.evaluation.benchmarks",
    "ldp_calibration.evaluation.networks",
    "ldp_calibration.evaluation.geneval",
    "ldp_calibration.evaluation.dpg",
    "ldp_calibration.evaluation.scorers",
    "ldp_calibration.evaluation",
    "ldp_calibration.evaluation.layouts",
    "ldp_calibration.evaluation.comparison",
    "ldp_calibration.search",
    "ldp_export",
    "ldp_export.models",
    "ldp_export.checkpoints.files",
    "ldp_export.checkpoints",
    "ldp_export.hub",
    "ldp_export.graphs",
    "ldp_export.quantization",
    "ldp_export.reference",
    "ldp_export.verification",
    "ldp_export.verification.recording",
    "ldp_export.builders",
    "ldp_export.builders.tensorrt",
    "ldp_export.builders.torch_compiled",
    "ldp_export.families",
    "ldp_export.building",
    "ldp_export.inspection",
    "ldp_export.bench.worker",
    "ldp_export.bench",
    "ldp_export.gpu_report",
    "ldp_export.cli.arguments",
    "ldp_export.cli.evaluate",
    "ldp_export.cli",
)


def test_every_room_has_its_floor() -> None:
    assert {room(name) for name in modules()} == set(FLOORS)


def test_no_arrow_runs_up() -> None:
    floor = {name: i for i, name in enumerate(FLOORS)}
    up = [
        f"{name} -> {other}"
        for name, others in arrows().items()
        for other in others
        if floor[room(other)] > floor[room(name)]
    ]
    assert not up


def test_no_circle_between_files() -> None:
    try:
        list(TopologicalSorter(arrows()).static_order())
    except CycleError as error:
        raise AssertionError(f"files import each other: {' -> '.join(error.args[1])}") from None


def test_folders_are_small() -> None:
    sizes = Counter(room(name) for name, path in modules().items() if path.name not in ("__init__.py", "__main__.py"))
    assert not {name: size for name, size in sizes.items() if size > MOST_MODULES}


def test_families_and_backends_have_one_name_in_every_layer() -> None:
    """A family is found by `ls */infinity.py`: the rooms that differ by family hold a module of its name."""
    layers = (
        "ldp_runtime.architecture",
        "ldp_runtime.families",
        *(f"ldp_export.{layer}" for layer in ("models", "checkpoints", "reference", "graphs", "families")),
        "ldp_export.verification.recording",
        "ldp_export.bench.worker",
    )
    for family in ("infinity", "var", "switti", "hart"):
        assert {layer for layer in layers if f"{layer}.{family}" in modules()} == set(layers)
    engines, builders = "ldp_runtime.engines", "ldp_export.builders"
    for backend in ("onnxruntime", "tensorrt", "torch_compiled"):
        assert f"{engines}.{backend}" in modules()
        assert f"{builders}.{backend}" in modules()

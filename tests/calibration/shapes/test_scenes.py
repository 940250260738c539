"""Scenes: seeded, within the picture, apart from each other; drawings: right colours, smooth edges."""

import numpy as np
import pytest
from ldp_calibration.shapes import COLOURS, KINDS, Background, Scene, Shape, draw, sample_scene
from ldp_calibration.shapes.scenes import GROUNDS, coverage


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def test_the_same_seed_draws_the_same_scenes() -> None:
    assert scenes(20, seed=3) == scenes(20, seed=3)
    assert scenes(20, seed=3) != scenes(20, seed=4)


def test_shapes_lie_inside_and_do_not_touch() -> None:
    for scene in scenes(300):
        for i, a in enumerate(scene.shapes):
            assert a.radius * 0.8 < min(a.x, a.y, 1 - a.x, 1 - a.y) + 0.03
            for b in scene.shapes[:i]:
                assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_all_kinds_colours_counts_and_backgrounds_occur() -> None:
    many = scenes(500)
    assert {shape.kind for scene in many for shape in scene.shapes} == set(KINDS)
    assert {shape.colour for scene in many for shape in scene.shapes} == set(COLOURS)
    assert {len(scene.shapes) for scene in many} == {1, 2, 3}
    assert {scene.background.style for scene in many} == {
        "plain",
        "graded",
        "striped",
        "checkered",
        "mottled",
    }


@pytest.mark.parametrize("side", [64, 128, 200])
def test_a_drawing_has_the_named_colours(side: int) -> None:
    scene = Scene((Shape("square", "blue", "large", 0.5, 0.5, 0.3),), Background("plain", "beige", "white"), "single")
    image = draw(scene, side)
    assert image.shape == (side, side, 3)
    assert image.dtype == np.uint8
    assert tuple(image[side // 2, side // 2]) == COLOURS["blue"]
    assert tuple(image[0, 0]) == GROUNDS["beige"]


@pytest.mark.parametrize("kind", KINDS)
def test_edges_are_blended_and_area_does_not_depend_on_resolution(kind: str) -> None:
    small, large = coverage(kind, 0.5, 0.5, 0.3, 96), coverage(kind, 0.5, 0.5, 0.3, 384)
    assert ((small > 0.05) & (small < 0.95)).any()
    assert small.mean() == pytest.approx(large.mean(), rel=0.02)

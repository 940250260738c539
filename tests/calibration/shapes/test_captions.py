"""Captions and prompts: what they say is true, and `holds` decides it."""

import numpy as np
import pytest
from ldp_calibration.shapes import (
    CATEGORIES,
    RELATIONS,
    Background,
    Claim,
    Prompt,
    Scene,
    Shape,
    caption,
    holds,
    prompts_of,
    sample_prompt,
    sample_scene,
)
from ldp_calibration.shapes.captions import related

CIRCLE = Shape("circle", "red", "medium", 0.3, 0.5, 0.16)
STAR = Shape("star", "blue", "medium", 0.7, 0.52, 0.16)
PLAIN = Background("plain", "white", "grey")


def test_true_prompts_hold_for_their_scene() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = sample_scene(rng)
        for prompt in prompts_of(scene):
            assert holds(prompt, scene.shapes), (prompt, scene)


def test_relations_name_the_axis_of_greater_distance() -> None:
    assert related(CIRCLE, STAR) == "left of"
    assert related(STAR, CIRCLE) == "right of"
    assert related(CIRCLE, CIRCLE) is None
    below = Shape("star", "blue", "medium", 0.35, 0.9, 0.16)
    assert related(CIRCLE, below) == "above"
    assert {related(a, b) for a in (CIRCLE, below, STAR) for b in (CIRCLE, below, STAR) if a != b} <= set(RELATIONS)


@pytest.mark.parametrize(
    ("prompt", "true"),
    [
        (Prompt("single object", "a star", (Claim("star"),)), True),
        (Prompt("single object", "a ring", (Claim("ring"),)), False),
        (Prompt("colours", "a red star", (Claim("star", "red"),)), False),
        (
            Prompt("counting", "one red circle", (Claim("circle", "red"),), count=1),
            False,
        ),  # the star is one too many
        (Prompt("two objects", "a star and a circle", (Claim("star"), Claim("circle"))), True),
        (Prompt("position", "", (Claim("circle"), Claim("star")), relation="left of"), True),
        (Prompt("position", "", (Claim("circle"), Claim("star")), relation="above"), False),
        (Prompt("colour attribution", "", (Claim("circle", "blue"), Claim("star", "red"))), False),
    ],
)
def test_what_holds(prompt: Prompt, true: bool) -> None:
    assert holds(prompt, (CIRCLE, STAR)) is true


def test_captions_vary_and_never_contradict_the_scene() -> None:
    scene = Scene((CIRCLE, STAR), PLAIN, "row")
    rng = np.random.default_rng(0)
    texts = {caption(scene, rng) for _ in range(300)}
    assert len(texts) > 100
    for text in texts:
        assert not {"green", "yellow", "square", "ring", "three", "above", "below", "striped"} & set(text.split())
        assert "  " not in text


def test_captions_of_shapes_alike_count_them() -> None:
    scene = Scene((CIRCLE, Shape("circle", "red", "medium", 0.7, 0.5, 0.16)), PLAIN, "row")
    rng = np.random.default_rng(0)
    assert all("two" in caption(scene, rng).split() for _ in range(50))


def test_every_category_has_prompts_and_others_are_refused() -> None:
    rng = np.random.default_rng(0)
    for category in CATEGORIES:
        assert sample_prompt(category, rng).category == category
    with pytest.raises(ValueError, match="counting"):
        sample_prompt("animals", rng)

"""The evaluator: accepts true drawings, rejects mismatched prompts, also when drawings are imperfect."""

import numpy as np
import pytest
from ldp_calibration.shapes import (
    CATEGORIES,
    COLOURS,
    KINDS,
    Background,
    Claim,
    Prompt,
    Scene,
    Score,
    Shape,
    draw,
    find_shapes,
    holds,
    judge,
    prompts_of,
    sample_prompt,
    sample_scene,
    score,
)


def rates(images_and_scenes: list[tuple[np.ndarray, Scene]], seed: int = 0) -> tuple[float, float]:
    """Shares of true prompts accepted and of false prompts rejected."""
    rng = np.random.default_rng(seed)
    pool = [sample_prompt(category, rng) for category in CATEGORIES for _ in range(30)]
    accepted, rejected = [], []
    for image, scene in images_and_scenes:
        found = find_shapes(image)
        accepted += [holds(prompt, found) for prompt in prompts_of(scene)]
        rejected += [not holds(prompt, found) for prompt in pool if not holds(prompt, scene.shapes)]
    return float(np.mean(accepted)), float(np.mean(rejected))


def drawings(count: int, seed: int = 7) -> list[tuple[np.ndarray, Scene]]:
    rng = np.random.default_rng(seed)
    return [(draw(scene), scene) for scene in (sample_scene(rng) for _ in range(count))]


def near_misses(prompt: Prompt) -> list[Prompt]:
    """The prompt with one thing changed: a colour, a kind or the count."""
    first, *rest = prompt.claims
    others = [Claim(kind, first.colour) for kind in KINDS if kind not in {claim.kind for claim in prompt.claims}]
    if first.colour is not None:
        others += [Claim(first.kind, colour) for colour in COLOURS if colour != first.colour]
    changed = [Prompt(prompt.category, "", (other, *rest), prompt.count, prompt.relation) for other in others]
    if prompt.count is not None:
        changed += [Prompt(prompt.category, "", prompt.claims, n) for n in (1, 2, 3) if n != prompt.count]
    return changed


def test_accepts_true_drawings_and_rejects_mismatches() -> None:
    accepted, rejected = rates(drawings(200))
    assert accepted >= 0.97
    assert rejected >= 0.95


def test_rejects_prompts_that_are_wrong_in_one_thing() -> None:
    wrong = [
        not holds(near, find_shapes(image))
        for image, scene in drawings(60, seed=8)
        for prompt in prompts_of(scene)
        for near in near_misses(prompt)
        if not holds(near, scene.shapes)
    ]
    assert len(wrong) > 500
    assert np.mean(wrong) >= 0.95


def test_forgives_blur_and_noise() -> None:
    from scipy import ndimage

    rng = np.random.default_rng(0)
    worn = []
    for image, scene in drawings(80, seed=9):
        blurred = ndimage.gaussian_filter(image.astype(np.float32), (1, 1, 0)) + rng.normal(0, 6, image.shape)
        worn.append((np.clip(blurred, 0, 255).astype(np.uint8), scene))
    accepted, rejected = rates(worn)
    assert accepted >= 0.95
    assert rejected >= 0.95


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("colour", list(COLOURS))
def test_finds_each_kind_in_each_colour(kind: str, colour: str) -> None:
    shape = Shape(kind, colour, "medium", 0.4, 0.6, 0.165)
    (found,) = find_shapes(draw(Scene((shape,), Background("plain", "grey", "white"), "single")))
    assert (found.kind, found.colour) == (kind, colour)
    assert abs(found.x - 0.4) < 0.03
    assert abs(found.y - 0.6) < 0.05


def test_sees_nothing_on_empty_or_blotched_images() -> None:
    assert find_shapes(draw(Scene((), Background("mottled", "slate", "white"), "single"))) == []
    image = np.full((128, 128, 3), 150, np.uint8)
    image[10:20, 5:120] = COLOURS["red"]  # a long bar is no square
    assert find_shapes(image) == []


def test_refuses_what_is_no_image() -> None:
    prompt = Prompt("single object", "a star", (Claim("star"),))
    with pytest.raises(ValueError, match="uint8"):
        judge(np.zeros((8, 8, 3), np.float32), prompt)


def test_scores_by_category_with_intervals() -> None:
    a, b = (Prompt(category, "", (Claim("star"),)) for category in ("single object", "colours"))
    scores = score([(a, True), (a, False), (b, True)])
    assert (scores["single object"].passed, scores["overall"].total) == (1, 3)
    low, high = Score(75, 100).interval
    assert low == pytest.approx(0.657, abs=0.002)
    assert high == pytest.approx(0.825, abs=0.002)

"""Pictures of counter-based noise: whatever is drawn beside an image, before or between its steps, it is the same."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.engine_runs import engines_of
from helpers.requests import image
from helpers.samples import random_texts
from ldp_runtime import Pipeline
from ldp_runtime.noise import CounterNoise
from ldp_runtime.pipeline.drawing import Drawing
from ldp_runtime.pipeline.request import ImageRequest

TEXTS = random_texts([5, 3, 8])
POLICIES = ("none", "ld", "ld-paper", "none:stop=2", "top-k:score=random,scales=5")


@pytest.fixture(scope="module")
def counter_pipe(small_pipe: Pipeline) -> Pipeline:
    """The engines of the small bundle, with the other kind of noise."""
    manifest = small_pipe.manifest.model_copy(update={"noise": "counter"})
    return Pipeline(manifest, engines_of(small_pipe), small_pipe._tokenizer, 4, small_pipe.root)


def finished(drawing: Drawing) -> list[torch.Tensor]:
    while not drawing.is_done:
        drawing.step()
    return [latent for latent, _ in drawing.results()]


def requests(pipe: Pipeline) -> list[ImageRequest]:
    return [
        image(pipe, prompt_embeds=TEXTS[i % 3], policy=policy, seed=2**62 + i, guidance_scale=(None, 1.0)[i % 2])
        for i, policy in enumerate(POLICIES)
    ]


def test_neighbours_and_interleaving_change_nothing(counter_pipe: Pipeline) -> None:
    images = requests(counter_pipe)
    alone = [finished(counter_pipe.start([one]))[0] for one in images]
    together = finished(counter_pipe.start(images[:4])) + finished(counter_pipe.start(images[4:]))
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one, other)
    chance = random.Random(0)
    running = [counter_pipe.start(images[2:]), counter_pipe.start(images[:2])]
    while not all(drawing.is_done for drawing in running):
        drawing = chance.choice([drawing for drawing in running if not drawing.is_done])
        drawing.step()
    mixed = [latent for drawing in reversed(running) for latent, _ in drawing.results()]
    for one, other in zip(alone, mixed, strict=True):
        assert torch.equal(one, other)


def test_a_policy_draws_kept_positions_as_the_full_model_does(counter_pipe: Pipeline) -> None:
    """A policy that keeps everything, through masks, is the full model; noise belongs to the position."""
    full, masked = (
        finished(counter_pipe.start([image(counter_pipe, prompt_embeds=TEXTS[0], policy=policy, seed=4)]))[0]
        for policy in ("none", "top-k:share=1,scales=3+5+6")
    )
    assert torch.equal(full, masked)


def test_the_manifest_chooses(counter_pipe: Pipeline, small_pipe: Pipeline) -> None:
    options = {"prompt_embeds": TEXTS[0], "seed": 4, "output_type": "latent"}
    assert not torch.equal(counter_pipe(**options).images, small_pipe(**options).images)
    assert torch.equal(counter_pipe(**options).images, counter_pipe(**options).images)
    assert not torch.equal(counter_pipe(**options | {"seed": 4 + 2**32}).images, counter_pipe(**options).images)
    drawing = counter_pipe.start([image(counter_pipe, prompt_embeds=TEXTS[0], seed=4)])
    assert isinstance(drawing._states[0].noise, CounterNoise)
    drawing.close()

"""Runs for tests: drawn by a tiny bundle, or painted, so that it is known which pictures are right."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt, lines_hash
from ldp_calibration.evaluation.benchmarks.shapes import claims_of, shapes
from ldp_calibration.evaluation.pictures import PictureRecord, file_name, png, write_pictures
from ldp_calibration.evaluation.run import NULL, Run, RunPolicy, RunSettings, begin, folder_name
from ldp_calibration.shapes import Background, Claim, Prompt, Scene, Shape, draw
from PIL import Image

#: Places of shapes in the order of a prompt's claims, by the relation of the first to the second.
_PLACES = {
    "left of": ((0.25, 0.5), (0.75, 0.5)),
    "right of": ((0.75, 0.5), (0.25, 0.5)),
    "above": ((0.5, 0.25), (0.5, 0.75)),
    "below": ((0.5, 0.75), (0.5, 0.25)),
}
_CORNERS = ((0.25, 0.25), (0.75, 0.75), (0.25, 0.75))


def tree(folder: Path, *names: str) -> dict[str, bytes]:
    """Content of the files below folders of a run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for name in names
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    }


def painted(prompt: Prompt, is_right: bool, noise: int) -> Image.Image:
    """A picture that shows what a prompt claims, or nothing but its ground."""
    pixels = _drawn(prompt.claims, prompt.count, prompt.relation) if is_right else _drawn(())
    moved = np.random.default_rng(noise).integers(-3, 4, pixels.shape)
    return Image.fromarray((pixels + moved).clip(0, 255).astype(np.uint8))


@cache
def _drawn(claims: tuple[Claim, ...], count: int | None = None, relation: str | None = None) -> np.ndarray:
    looks = [(claim.kind, claim.colour or "red") for claim in claims * (count or 1)]
    places = _PLACES.get(relation or "", _CORNERS)
    shapes = [Shape(*look, "small", *place, 0.14) for look, place in zip(looks, places, strict=False)]
    return draw(Scene(tuple(shapes), Background("plain", "grey", "white"), "row")).astype(np.int16)


def painted_run(
    folder: Path,
    wrong: Mapping[str, Collection[int]],
    count: int = 24,
    images: int = 1,
    prompts: tuple[EvaluationPrompt, ...] | None = None,
) -> Run:
    """Run whose pictures show what the prompts claim, but for the prompts that each policy gets wrong."""
    prompts = shapes().prompts[:count] if prompts is None else prompts
    policies = [
        RunPolicy(label=label, folder=folder_name(label), policy=f"none:skip_last={i}", other_seeds=label == NULL)
        for i, label in enumerate(wrong)
    ]
    settings = RunSettings(
        benchmark="shapes",
        prompts_sha256=lines_hash(prompts),
        prompts=len(prompts),
        limit=len(prompts),
        images=images,
        seed=0,
        scorers=("shapes", "psnr", "ssim"),
        bundle="0" * 64,
        model="infinity-shapes",
        backend="onnxruntime",
        precision="float32",
        device="cpu",
        policies=tuple(policies),
    )
    run = begin(folder, settings, prompts)
    for number, policy in enumerate(policies):
        for i in range(len(prompts)):
            paint(run, policy, i, i not in wrong[policy.label], noise=number)
    return run


def paint(run: Run, policy: RunPolicy, prompt: int, is_right: bool, noise: int = 0) -> None:
    """Paints the pictures of a prompt, with their records."""
    pictures = []
    for j in range(run.settings.images):
        content = png(painted(claims_of(run.prompts[prompt]), is_right, 1000 * noise + 10 * prompt + j))
        record = PictureRecord(
            prompt=prompt,
            image=j,
            text=run.prompts[prompt].text,
            seed=run.settings.seed_of(policy, prompt, j),
            policy=policy.policy,
            tokens=100 - 10 * noise,
            tokens_full=100,
            kept=(100 - 10 * noise,),
            operations=1000 - 100 * noise,
            file=file_name(j),
            sha256=hashlib.sha256(content).hexdigest(),
        )
        pictures.append((content, record))
    write_pictures(run.prompt_folder(policy, prompt), pictures)

"""Scorer `dpg`: what the official VQA, run elsewhere, answered about each picture."""

from __future__ import annotations

from collections.abc import Sequence

from ldp_runtime.errors import ConfigError

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.dpg.all_tiles import tile_score
from ldp_calibration.evaluation.dpg.answers import answers_of, read_detail
from ldp_calibration.evaluation.dpg.questions import Question, questions_of
from ldp_calibration.evaluation.scorers.opening import Opened, Wish
from ldp_calibration.evaluation.scorers.scorer import Sample, Score

_PERCENT = 100.0


def open_dpg(wish: Wish) -> Opened:
    if not wish.answers:
        raise ConfigError(
            "dpg needs the answers of the official VQA",
            hint="ldp-export evaluate export RUN --layout dpg, run the official script on each folder, then "
            "--answers POLICY=DETAIL_FILE for each policy",
        )
    read = {policy: read_detail(path) for policy, path in wish.answers.items()}

    def score(samples: Sequence[Sample]) -> list[Score]:
        return [_score(one) for one in samples]

    def _score(sample: Sample) -> Score:
        if sample.policy not in read:
            raise ConfigError(
                f"there are no answers about the pictures of {sample.policy}",
                hint=f"--answers {sample.policy}=DETAIL_FILE, or name the others with --policy",
            )
        questions = _questions(sample.prompt)
        item = questions[0].item
        found = answers_of(read[sample.policy][0], item, sample.number, questions)
        keyed = {(item, sample.number, text): answer for text, answer in found.items()}
        return Score(_PERCENT * tile_score(questions, keyed, sample.number), {"answers": found})

    def check(prompt: EvaluationPrompt) -> None:
        """Every file answers every question of the prompt, about as many tiles as it knows of any."""
        questions = _questions(prompt)
        item = questions[0].item
        for lines, _ in read.values():
            for tile in range(1 + max(number for _, number in lines)):
                found = answers_of(lines, item, tile, questions)
                tile_score(questions, {(item, tile, text): answer for text, answer in found.items()}, tile)

    settings = {"answers": {policy: digest for policy, (_, digest) in read.items()}, "counted": "all questions"}
    return Opened(score, settings, check)


def _questions(prompt: EvaluationPrompt) -> list[Question]:
    try:
        questions = questions_of([prompt])
    except ValueError as error:
        raise ConfigError(str(error), hint="the scorer dpg judges --benchmark dpg") from error
    if not questions:
        raise ConfigError(f"the prompt {prompt.text[:80]!r} has no questions", hint="fetch the benchmark dpg anew")
    return questions

"""Summary of GenEval's results, in the words and with the weights of the official script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt


def metadata(prompt: EvaluationPrompt) -> dict[str, Any]:
    """Line of a prompt in the benchmark's file; of a rewritten prompt with the text as it was."""
    clauses = {name: prompt.facts[name] for name in ("include", "exclude") if name in prompt.facts}
    return {"tag": prompt.tag, **clauses, "prompt": prompt.facts.get("original", prompt.text)}


@dataclass(frozen=True)
class GenevalSummary:
    """Summary of results.

    Attributes:
        images, prompts: their numbers; correct_images, correct_prompts: shares of correct ones, and of prompts with at
            least one correct image.
        tasks: correct images and all images by task.
    """

    images: int
    prompts: int
    correct_images: float
    correct_prompts: float
    tasks: Mapping[str, tuple[int, int]]

    @property
    def overall(self) -> float:
        """Mean of the tasks' scores, whatever their numbers of images."""
        return sum(correct / count for correct, count in self.tasks.values()) / len(self.tasks)

    def text(self) -> str:
        """The summary as the official script prints it."""
        tasks = [f"{task:<16} = {c / n:.2%} ({c} / {n})" for task, (c, n) in self.tasks.items()]
        return "\n".join(
            (
                "Summary",
                "=======",
                f"Total images: {self.images}",
                f"Total prompts: {self.prompts}",
                f"% correct images: {self.correct_images:.2%}",
                f"% correct prompts: {self.correct_prompts:.2%}",
                "",
                "Task breakdown",
                "==============",
                *tasks,
                "",
                f"Overall score (avg. over tasks): {self.overall:.5f}",
            )
        )


def summary(rows: Sequence[Mapping[str, Any]]) -> GenevalSummary:
    """Summary of results by the official script's columns `tag`, `correct` and `metadata`.

    Raises:
        ValueError: there are none.
    """
    if not rows:
        raise ValueError("there are no results")
    tasks, prompts = dict[str, tuple[int, int]](), dict[str, bool]()
    for row in rows:
        correct = bool(row["correct"])
        before = tasks.get(row["tag"], (0, 0))
        tasks[row["tag"]] = before[0] + correct, before[1] + 1
        prompts[row["metadata"]] = prompts.get(row["metadata"], False) or correct
    return GenevalSummary(
        images=len(rows),
        prompts=len(prompts),
        correct_images=sum(bool(row["correct"]) for row in rows) / len(rows),
        correct_prompts=sum(prompts.values()) / len(prompts),
        tasks=tasks,
    )

"""Scorer `geneval`: the official detector's weights, CLIP's colours, and the official verdict on a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.system.small_files import read_small, text_lines

from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt
from ldp_calibration.evaluation.geneval.colours import ColourClassifier
from ldp_calibration.evaluation.geneval.detections import Detection, detections
from ldp_calibration.evaluation.geneval.verdict import COLOURS, Verdict, VerdictOptions, judge
from ldp_calibration.evaluation.networks import weights
from ldp_calibration.evaluation.networks.inputs import detector_input
from ldp_calibration.evaluation.networks.mask2former import detect, load_detector
from ldp_calibration.evaluation.scorers.opening import Opened, Wish
from ldp_calibration.evaluation.scorers.preference import clip_network, library_settings
from ldp_calibration.evaluation.scorers.scorer import Sample, Score


@dataclass(frozen=True)
class _Objects:
    """Objects found in a picture, by class."""

    image: Any
    by_class: Mapping[str, Sequence[Detection]]

    def boxes(self) -> dict[str, np.ndarray]:
        return {name: np.stack([one.box for one in found]) for name, found in self.by_class.items()}


class _Judge:
    """Detector, colour classifier and verdict."""

    def __init__(self, detector: Any, colours: ColourClassifier, classes: Sequence[str], device: str) -> None:
        self._detector, self._colours = detector.to(device), colours
        self._classes, self._device, self._options = classes, device, VerdictOptions()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        return [self._score(one) for one in samples]

    def _score(self, sample: Sample) -> Score:
        """Score of one picture: inputs differ in size, so each goes through the detector by itself, as officially."""
        found = self._objects(sample.image)

        def colours(name: str, numbers: Sequence[int]) -> list[str]:
            looked_at = [found.by_class[name][i] for i in numbers]
            return self._colours.colours(
                found.image, name, [one.box for one in looked_at], [one.mask for one in looked_at]
            )

        asked = {"tag": sample.prompt.tag, **sample.prompt.facts}
        return _score_of(judge(asked, found.boxes(), colours, self._options), found)

    def _objects(self, image: np.ndarray) -> _Objects:
        from PIL import Image

        class_logits, mask_logits = detect(self._detector, detector_input(image)[None].to(self._device))
        height, width = image.shape[:2]
        least = min(self._options.threshold, self._options.counting_threshold)
        found = detections(class_logits[0], mask_logits[0], width, height, least)
        by_class = {
            name: [one for one in found if one.label == i]
            for i, name in enumerate(self._classes)
            if any(one.label == i for one in found)
        }
        return _Objects(Image.fromarray(image), by_class)


def _score_of(verdict: Verdict, found: _Objects) -> Score:
    kept = {name: [found.by_class[name][i].box.tolist() for i in numbers] for name, numbers in verdict.kept.items()}
    return Score(float(verdict.correct), {"reason": verdict.reason, "details": kept})


def open_geneval(wish: Wish) -> Opened:
    wish.check()
    networks = wish.networks or weights.Networks()
    file, names = (weights.existing(wish.weights, one, "geneval") for one in (weights.DETECTOR, weights.CLASSES))
    weights.existing(wish.weights, weights.CLIP, "geneval")  # refused before the detector is read
    names_hash = weights.checked_hash(names, networks.known)
    classes = _class_names(names, networks.detector.classes)
    clip, settings = clip_network(wish, weights.CLIP, networks.clip, "geneval")
    tensors, source = weights.read_weights(file, networks.known)
    detector = load_detector(tensors, networks.detector)
    settings = {
        weights.DETECTOR: source,
        weights.CLASSES: names_hash,
        "detector": "float32; transformers' Mask2Former",
        **settings,
        **library_settings(wish),
    }
    return Opened(_Judge(detector, ColourClassifier(clip), classes, wish.device), settings, _check(classes))


def _class_names(path: Any, count: int) -> list[str]:
    try:
        names = text_lines(read_small(path))
        if len(names) != count:
            raise ValueError(f"it holds {len(names)} names, not {count}")
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path} does not hold the detector's classes: {error}", hint="fetch it anew") from error
    return names


def _check(classes: Sequence[str]) -> Any:
    """Function that raises ConfigError for a prompt that claims nothing which the detector knows."""

    def check(prompt: EvaluationPrompt) -> None:
        try:
            clauses = [*prompt.facts.get("include", ()), *prompt.facts.get("exclude", ())]
            known = all(_is_clause(clause, i, classes) for i, clause in enumerate(clauses))
        except (KeyError, TypeError, ValueError, AttributeError):
            known = False
        if not known or not prompt.facts.get("include"):
            raise ConfigError(
                f"the prompt {prompt.text[:80]!r} does not say which objects it claims",
                hint="the scorer geneval judges --benchmark geneval, or a .jsonl with "
                '"include": [{"class": "bench", "count": 1}]',
            )

    return check


def _is_clause(clause: Mapping[str, Any], number: int, classes: Sequence[str]) -> bool:
    relation, index = clause.get("position", ("above", -1))
    return (
        clause["class"] in classes
        and isinstance(clause["count"], int)
        and clause["count"] >= 1
        and clause.get("color", COLOURS[0]) in COLOURS
        and relation in ("left of", "right of", "above", "below")
        and isinstance(index, int)
        and index < number
        and ("position" not in clause or index >= 0)
    )

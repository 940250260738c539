"""Checks of the rows of a call, and of the memory around what a call reads: batches, and poisoned caches.

A row's logits depend neither on the other rows nor on how many there are, nor on memory that no call has written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.engines.blocks import PromptRows
from ldp_runtime.pipeline.conditions import run_prompt, texts_rows
from ldp_runtime.pipeline.open_engines import Engines
from ldp_runtime.schedule import ScaleSchedule

from ldp_export.verification.case_runs import case_rows, image_state, recorded_text, rows_of_text, run_case, run_of
from ldp_export.verification.cases import Case
from ldp_export.verification.checks import Add, Check, bad_numbers_fail, compare
from ldp_export.verification.forced import FilledMemory, OverheardBlocks
from ldp_export.verification.tolerances import Limits

#: Tokens of all rows together that a batch computes at most; every batch runs the first two scales.
_TOKENS = 256

#: Kinds of images in a batch: the recorded case, and two of other texts or classes and other tokens.
_KINDS = 3


def check_batches(bundle: Bundle, engines: Engines, limits: Limits, add: Add) -> None:
    """Checks the first scales of every batch size: rows of the recorded case, between rows of other texts or classes.

    Rows of the case are compared with the reference, the others with a run by themselves.
    """
    images = _Images(bundle, engines, limits)
    most = max(1, bundle.manifest.limits.rows // images.branches)
    alone = [images.run([kind], images.scales_of(1)) for kind in range(min(_KINDS, most))]
    for count in range(1, most + 1):
        kinds = [0 if i % 2 == 0 else 1 + i // 2 % 2 for i in range(count)]
        checks = []
        for k, logits in images.run(kinds, images.scales_of(count)).items():
            for row, kind in enumerate(kinds * (len(logits) // count)):
                expected = images.recorded(k) if kind == 0 else alone[kind][k]
                checks.append(compare("", logits[row], expected[row // count], images.limit(k)))
        add(_worst(f"batch of {count}, logits", checks))


def check_identical_rows(bundle: Bundle, engines: Engines, limits: Limits, add: Add) -> None:
    """Checks that the same text (or class) twice in one call gives the same logits twice."""
    images = _Images(bundle, engines, limits)
    case, checks = images.case, []

    def check(k: int, logits: torch.Tensor) -> None:
        if len(logits) > 1:  # one is left once guidance has ended
            checks.append(compare("", logits[0], logits[1], images.limit(k)))

    guided = replace(case, guidance=case.guidance if case.guidance not in (0, 1) else 2.0)
    run_case(bundle, engines, images.twice(), images.schedule, guided, images.tokens(0), None, check)
    add(_worst("identical rows, logits", checks))


def check_poisoned_caches(bundle: Bundle, engines: Engines, limits: Limits, add: Add) -> None:
    """Checks that memory behind the positions in use changes nothing, be it NaN or a large number."""
    images = _Images(bundle, engines, limits)
    large = torch.finfo(getattr(torch, engines.blocks.shape.cache)).max / 4
    for name, value in (("NaN", math.nan), ("large numbers", large)):
        with bad_numbers_fail(f"cache filled with {name}", add):
            logits = images.run([0], len(images.schedule), value)
            checks = [compare("", found, images.recorded(k), images.limit(k)) for k, found in logits.items()]
            add(_worst(f"cache filled with {name}, logits", checks))


#: Checks of rows and caches, by the name under which a failure to give finite numbers is reported.
ROW_CHECKS: Mapping[str, Callable[[Bundle, Engines, Limits, Add], None]] = {
    "batches": check_batches,
    "identical rows": check_identical_rows,
    "poisoned caches": check_poisoned_caches,
}


def _worst(name: str, checks: Sequence[Check]) -> Check:
    """The check that is closest to failing, or has failed, under a common name."""
    worst = max(checks, key=lambda check: (not check.passed, check.measured / max(check.limit, 1e-300)))
    return replace(worst, name=name)


@dataclass(frozen=True)
class _Images:
    """Images of the first recorded case, and of others like it, in one run of the engines."""

    bundle: Bundle
    engines: Engines
    limits: Limits

    @property
    def case(self) -> Case:
        return self.limits.reference.cases[0]

    @cached_property
    def schedule(self) -> ScaleSchedule:
        return self.case.of(self.bundle.manifest.schedule(self.case.aspect_ratio))

    @cached_property
    def branches(self) -> int:
        """Rows of one image."""
        return len(self.recorded(0))

    def recorded(self, scale: int) -> torch.Tensor:
        """Logits of the case [branches, L, V]."""
        return self.limits.reference.tensors[f"{self.case.name}.logits_{scale}"]

    def limit(self, scale: int) -> float:
        return self.limits.logits(self.case, scale, self.recorded(scale))

    def scales_of(self, count: int) -> int:
        """Number of first scales that a batch of so many images runs."""
        fit = [n for n in range(len(self.schedule) + 1) if count * self.branches * self._end(n) <= _TOKENS]
        return min(len(self.schedule), max(2, fit[-1]))

    def _end(self, scales: int) -> int:
        """Tokens of so many first scales."""
        return sum(self.schedule.tokens[:scales])

    def run(self, kinds: Sequence[int], scales: int, poison: float | None = None) -> dict[int, torch.Tensor]:
        """Logits of the first scales [rows, L, V]: conditional rows of images of these kinds, then the others.

        Args:
            poison: value that fills new caches; None leaves them as they are.
        """
        seen: dict[int, torch.Tensor] = {}
        blocks = OverheardBlocks(self.engines.blocks, seen.setdefault)
        states = [image_state(self.bundle, self.engines, self.schedule, self.case, self.tokens(kind)) for kind in kinds]
        memory = None if poison is None else FilledMemory.of(blocks, self.schedule, len(kinds), poison)
        run = run_of(self.bundle, self.engines, blocks, self._prompt(kinds), states, self.case, {}, memory)
        for _ in range(scales):
            run.step()
        run.check()
        return seen

    def tokens(self, kind: int) -> list[torch.Tensor]:
        """Tokens of every scale: recorded ones, or others of the same range."""
        recorded = self.limits.reference.tokens(self.case, len(self.schedule))
        device = self.engines.blocks.device
        if recorded[0].dtype == torch.bool:
            changed = (lambda bits: bits, torch.logical_not, lambda bits: bits.flip(-1))[kind]
            return [changed(bits).to(device) for bits in recorded]
        return [((indices + kind) % (indices.max() + 1)).to(device) for indices in recorded]

    def _prompt(self, kinds: Sequence[int]) -> PromptRows:
        of_kind = {kind: self._rows(kind) for kind in set(kinds)}
        return PromptRows.stack([of_kind[kind].take([branch]) for branch in range(self.branches) for kind in kinds])

    def _rows(self, kind: int) -> PromptRows:
        """Rows of the case's text or class; other kinds have a shorter text, or another class."""
        case, reference = self.case, self.limits.reference
        if kind == 0:
            return case_rows(self.bundle, self.engines, reference, case)
        if case.label is not None:
            classes = 1 + max(other.label or 0 for other in reference.cases)
            other = replace(case, label=(case.label + kind) % classes)
            return case_rows(self.bundle, self.engines, reference, other)
        count = len(reference.tensors[f"{case.name}.features"])
        tokens = 1 if kind == 1 else count // 2 + 1
        return rows_of_text(self.bundle, self.engines, reference, case, self.branches == 2, tokens)

    def twice(self) -> PromptRows:
        """Rows of the case's text or class, twice in one call."""
        device = self.engines.prompt.device
        if self.case.label is not None:
            both = torch.tensor([self.case.label] * 2, device=device)
            return run_prompt(self.engines, self.bundle.manifest, {"labels": both})
        text = recorded_text(self.limits.reference, self.case, self.engines, "features", "pooled")
        return texts_rows(self.engines, self.bundle.manifest, [text, text])

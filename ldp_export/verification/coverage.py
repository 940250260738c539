"""Share of a model that its recorded runs cover, in tokens and in shapes, from small files of the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ldp_runtime.bundle.files import REFERENCE, Bundle

from ldp_export.verification.cases import Shape, read_runs


@dataclass(frozen=True)
class Coverage:
    """Tokens and shapes of a square image that verification compares.

    Attributes:
        tokens: tokens that are run end to end, of `all_tokens`.
        scales: scales whose shape is run, end to end or block by block, of `all_scales`.
        pruned: number of pruned runs and shapes.
    """

    tokens: int
    all_tokens: int
    scales: int
    all_scales: int
    pruned: int

    def __str__(self) -> str:
        share = self.tokens / self.all_tokens
        return (
            f"{self.tokens} of {self.all_tokens} tokens ({share:.0%}) end to end, the shapes of {self.scales} of "
            f"{self.all_scales} scales, {self.pruned} pruned"
        )


def shapes_to_check(bundle: Bundle, shapes: Sequence[Shape]) -> list[Shape]:
    """Shapes that a bundle's engines are checked at.

    Engines with optimization profiles have kernels for each, so all shapes count. Others have one way to compute any
    size, and the last scale, whole and pruned, stands for all.
    """
    if any(graph.profiles for graph in bundle.manifest.graphs.values()):
        return list(shapes)
    last = max((shape.scale for shape in shapes), default=0)
    return [shape for shape in shapes if shape.scale == last]


def coverage(bundle: Bundle) -> Coverage:
    """Coverage of a bundle's recorded runs at 1:1; raises IntegrityError if they cannot be read."""
    folder, schedule = bundle.path(REFERENCE), bundle.manifest.schedule()
    cases, recorded = read_runs(folder)
    shapes = shapes_to_check(bundle, recorded)
    runs = max((len(case.of(schedule)) for case in cases), default=0)
    whole = {shape.scale for shape in shapes if shape.tokens == schedule.tokens[shape.scale]} | set(range(runs))
    pruned = sum(case.pruned for case in cases) + sum(shape.tokens < schedule.tokens[shape.scale] for shape in shapes)
    return Coverage(sum(schedule.tokens[:runs]), schedule.total_tokens, len(whole), len(schedule), pruned)

"""Choice of a benchmark by its name, or by a file of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.errors import ConfigError, suggestion

from ldp_calibration.evaluation.benchmarks.benchmark import Benchmark
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt, read_prompts
from ldp_calibration.evaluation.benchmarks.shapes import shapes

#: Benchmarks by their names.
BENCHMARKS: dict[str, Callable[[], Benchmark]] = {"shapes": shapes}


def find_benchmark(name: str, manifest: Manifest) -> Benchmark:
    """A benchmark by its name, or the prompts (or classes) of a file.

    Raises:
        ConfigError: there is neither, or it is for another model.
    """
    if name not in BENCHMARKS:
        file = Path(name)
        if not file.exists() and not file.suffix:
            known = ", ".join(BENCHMARKS)
            raise ConfigError(
                f"unknown benchmark {name!r}", hint=f"{suggestion(name, BENCHMARKS)}one of {known}, or a prompts file"
            )
        benchmark = Benchmark(file.name, tuple(read_prompts(file)))
    else:
        benchmark = BENCHMARKS[name]()
    if benchmark.model not in (None, manifest.model.name):
        raise ConfigError(
            f"the benchmark {name} is for {benchmark.model}, and the bundle holds {manifest.model.name}",
            hint="name a file of prompts",
        )
    if not manifest.model.reads_text:
        _check_classes(benchmark.prompts, manifest)
    return benchmark


def _check_classes(prompts: Sequence[EvaluationPrompt], manifest: Manifest) -> None:
    from ldp_runtime.pipeline.request import check_labels

    try:
        labels = [int(prompt.text) for prompt in prompts]
    except ValueError as error:
        raise ConfigError(
            f"{manifest.model.name} draws classes: {error}", hint="write numbers such as 207, one a line"
        ) from error
    check_labels(manifest.model, labels)

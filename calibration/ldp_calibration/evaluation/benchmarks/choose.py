"""Choice of a benchmark by its name, or by a file of prompts."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.errors import ConfigError, IntegrityError, suggestion

from ldp_calibration.evaluation.benchmarks import dpg, geneval, hpsv2, imagereward
from ldp_calibration.evaluation.benchmarks.benchmark import Benchmark
from ldp_calibration.evaluation.benchmarks.prompts import EvaluationPrompt, check_prompt, read_prompts
from ldp_calibration.evaluation.benchmarks.published import PUBLISHED, fetched_files, fetched_folder
from ldp_calibration.evaluation.benchmarks.shapes import shapes

#: Benchmarks of others: how their files are read, the protocol's pictures of a prompt, and what scores them here.
_READERS: dict[str, tuple[Callable[[Mapping[str, bytes]], list[EvaluationPrompt]], int, tuple[str, ...]]] = {
    "geneval": (geneval.read, geneval.IMAGES, ("psnr", "ssim")),
    "geneval-rewritten": (geneval.read_rewritten, geneval.IMAGES, ("psnr", "ssim")),
    "dpg": (dpg.read, dpg.IMAGES, ("psnr", "ssim")),
    "hpsv2": (hpsv2.read, hpsv2.IMAGES, ("psnr", "ssim")),
    "imagereward": (imagereward.read, imagereward.IMAGES, ("psnr", "ssim")),
}
#: Names of benchmarks.
BENCHMARKS = ("shapes", *_READERS)


def find_benchmark(name: str, manifest: Manifest, local_dir: Path | None = None) -> Benchmark:
    """A benchmark by its name, or the prompts (or classes) of a file.

    Args:
        local_dir: folder below which benchmarks of others were fetched, instead of this program's cache.

    Raises:
        ConfigError: there is neither, it is for another model, or it was not fetched.
        IntegrityError: what was fetched is damaged.
    """
    if name in _READERS:
        benchmark = read_published(name, local_dir)
    elif name == "shapes":
        benchmark = shapes()
    else:
        benchmark = _of_file(name)
    if benchmark.model not in (None, manifest.model.name):
        raise ConfigError(
            f"the benchmark {name} is for {benchmark.model}, and the bundle holds {manifest.model.name}",
            hint="name a file of prompts",
        )
    if not manifest.model.reads_text:
        if name in _READERS:
            raise ConfigError(
                f"the prompts of {name} are texts, and {manifest.model.name} draws classes",
                hint="name a file of classes, one a line",
            )
        _check_classes(benchmark.prompts, manifest)
    return benchmark


def read_published(name: str, local_dir: Path | None = None) -> Benchmark:
    """Benchmark of others from the files that were fetched; raises as `find_benchmark`."""
    published, (read, images, scorers) = PUBLISHED[name], _READERS[name]
    files = fetched_files(published, local_dir)
    try:
        prompts = read(files)
        for prompt in prompts:
            check_prompt(prompt)
        if len(prompts) != published.prompts:
            raise ValueError(f"it holds {len(prompts)} prompts, not {published.prompts}")
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise IntegrityError(
            f"what was fetched of {name} has another format: {why}",
            hint=f"delete {fetched_folder(local_dir) / name}, and fetch it again",
        ) from error
    return Benchmark(name, tuple(prompts), images, scorers)


def _of_file(name: str) -> Benchmark:
    file = Path(name)
    if not file.exists() and not file.suffix:
        known = ", ".join(BENCHMARKS)
        raise ConfigError(
            f"unknown benchmark {name!r}", hint=f"{suggestion(name, BENCHMARKS)}one of {known}, or a prompts file"
        )
    return Benchmark(file.name, tuple(read_prompts(file)))


def _check_classes(prompts: Sequence[EvaluationPrompt], manifest: Manifest) -> None:
    from ldp_runtime.pipeline.request import check_labels

    try:
        labels = [int(prompt.text) for prompt in prompts]
    except ValueError as error:
        raise ConfigError(
            f"{manifest.model.name} draws classes: {error}", hint="write numbers such as 207, one a line"
        ) from error
    check_labels(manifest.model, labels)

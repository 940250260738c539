"""Draws what a run lacks: prompt by prompt, every policy in turn, in one process or several."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from ldp_runtime.arguments import shown
from ldp_runtime.bundle.files import Bundle
from ldp_runtime.bundle.manifest import Manifest
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.pipeline.pipeline import Pipeline
from ldp_runtime.pipeline.trace import Trace
from ldp_runtime.pruning.policy import Policy
from ldp_runtime.system.disk import require_room

from ldp_calibration.cost import trace_flops
from ldp_calibration.evaluation.pictures import PictureRecord, file_name, is_drawn, png, write_pictures
from ldp_calibration.evaluation.policies import Named, drawn_policy, named_policy
from ldp_calibration.evaluation.run import Run, RunPolicy
from ldp_calibration.evaluation.times import entry, new_times_file, read_times, seconds_by_policy
from ldp_calibration.processes import in_processes
from ldp_calibration.resumable import Add, appended

_SHARD = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
#: Says how far the work is: done, total, in words.
Report = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` of a run's prompts: every `count`-th one, from `index`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Parses "0/4". Raises ConfigError for anything else."""
        found = _SHARD.fullmatch(text)
        if found is None or not int(found[1]) < int(found[2]):
            raise ConfigError(f"cannot read the shard {shown(text)}", hint="0/4 is the first of four, 3/4 the last")
        return cls(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        return f"shard-{self.index}-of-{self.count}"

    def prompts(self, run: Run) -> Sequence[int]:
        return range(self.index, len(run.prompts), self.count)


@dataclass(frozen=True)
class Chosen:
    """Prompts of a run by their numbers: a search draws some first, and more by what is worth it."""

    numbers: tuple[int, ...]
    name: ClassVar[str] = Shard().name  # of the lock: no other process draws meanwhile

    def prompts(self, run: Run) -> Sequence[int]:
        del run
        return self.numbers


@dataclass(frozen=True)
class Plan:
    """Pictures that are left to draw.

    Attributes:
        missing: prompts, and for each the labels of the policies that lack it.
        pictures: number of pictures left; there: number of those that are drawn.
        seconds: expected in one process, from the run's own times; None if nothing was timed.
        most_bytes: most room that the pictures can take.
    """

    missing: tuple[tuple[int, tuple[str, ...]], ...]
    pictures: int
    there: int
    seconds: float | None
    most_bytes: int


def plan(run: Run, labels: Sequence[str], manifest: Manifest, part: Shard | Chosen) -> Plan:
    """Looks at every picture of a part of the run; those that are missing or damaged are to be drawn."""
    policies = [run.settings.policy(label) for label in labels]
    lacking = {i: tuple(p.label for p in policies if not is_drawn(run, p, i)) for i in part.prompts(run)}
    missing = tuple((i, labels) for i, labels in lacking.items() if labels)
    prompts = sum(len(labels) for _, labels in missing)
    there = len(lacking) * len(policies) - prompts
    images, known = run.settings.images, seconds_by_policy(read_times(run))
    middle = sorted(known.values())[len(known) // 2] if known else None
    seconds = None if middle is None else sum(known.get(p, middle) for _, labels in missing for p in labels)
    return Plan(missing, prompts * images, there * images, seconds, prompts * images * most_bytes(manifest))


def most_bytes(manifest: Manifest) -> int:
    """Most room that a picture and its record take."""
    height, width = (side * manifest.model.pixels_per_token for side in manifest.schedule().final_grid)
    return 3 * height * width + 4096


def draw(
    run: Run,
    bundle: Bundle,
    labels: Sequence[str],
    *,
    shard: Shard = Shard(),
    workers: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    named: Named = named_policy,
    report: Report = lambda done, total, detail: None,
) -> Plan:
    """Draws the pictures of a shard that are missing; what is there stays. Returns what was missing.

    Args:
        labels: policies to draw by.
        workers: number of processes, each with its own engines.
        named: finds the policies by their labels, as when the run began.

    Raises:
        ConfigError: another process draws this shard.
        CapacityError: the disk has no room, or is full; what is drawn is kept.
    """
    with _claimed(run, bundle.manifest, labels, shard) as found:
        total = len(found.missing)
        if not total:
            return found
        engines = (bundle.folder, bundle.manifest.digest, device, threads)
        if workers == 1:
            with load_engines(*engines) as pipe, Painter(run, pipe, named) as painter:
                painter.draw_all(found, report)
        else:
            drawn = in_processes(min(workers, total), _begin, (run, engines, named), _draw, found.missing)
            for done, prompt in enumerate(drawn, start=1):
                report(done, total, run.prompts[prompt].text)
        report(total, total, "")
        return found


@contextmanager
def _claimed(run: Run, manifest: Manifest, labels: Sequence[str], part: Shard | Chosen) -> Generator[Plan]:
    """Pictures that a part of a run lacks, while no other process draws it, and with room for it."""
    with run.exclusive(part.name, "drawing of this shard"):
        found = plan(run, labels, manifest, part)
        if found.missing:
            hint = "free some space, or name a folder on another disk"
            require_room(run.folder, found.most_bytes, "the run", hint)
        yield found


def load_engines(bundle: Path, digest: str, device: str, threads: int | None) -> Pipeline:
    """Pipeline of a bundle, warmed up. Raises LdpError: see `Pipeline.load`; also if its digest is another one."""
    pipe = Pipeline.load(bundle, device=device, threads=threads, integrity="sizes", expected_digest=digest, max_batch=1)
    pipe.warmup()
    return pipe


class Painter:
    """A pipeline that draws a run, the policies that it draws by, and the file of its times.

    Args:
        pipe: the pipeline of the run's bundle; it stays open.
        named: finds the policies by their labels, as when the run began.

    Raises:
        IntegrityError: the pipeline is of another bundle.
    """

    def __init__(self, run: Run, pipe: Pipeline, named: Named = named_policy) -> None:
        if pipe.manifest.digest != run.settings.bundle:
            raise IntegrityError(
                f"the run in {run.folder} is of the bundle {run.settings.bundle[:16]}, not {pipe.manifest.digest[:16]}",
                hint="draw with the bundle that the run began with, or into another folder",
            )
        self.run, self._pipe = run, pipe
        self._policy = partial(drawn_policy, root=pipe.root, manifest=pipe.manifest, named=named)
        self._policies: dict[str, Policy] = {}
        self._times = appended(new_times_file(run))
        self._add: Add = self._times.__enter__()

    def __enter__(self) -> Painter:
        return self

    def __exit__(self, *error: object) -> None:
        self._times.__exit__(None, None, None)

    def draw_part(
        self, labels: Sequence[str], part: Shard | Chosen, report: Report = lambda done, total, detail: None
    ) -> Plan:
        """Draws the pictures of a part of the run that are missing, as the function `draw` does."""
        with _claimed(self.run, self._pipe.manifest, labels, part) as found:
            self.draw_all(found, report)
            return found

    def draw_all(self, found: Plan, report: Report = lambda done, total, detail: None) -> None:
        """Draws the pictures that are left."""
        done, total = 0, sum(len(labels) for _, labels in found.missing)
        for prompt, missing in found.missing:
            for label in in_turn(missing, prompt):
                report(done, total, f"{label}: {self.run.prompts[prompt].text}")
                self._draw(self.run.settings.policy(label), prompt)
                done += 1

    def draw(self, prompt: int, labels: Sequence[str]) -> None:
        """Draws a prompt by policies in turn."""
        for label in in_turn(labels, prompt):
            self._draw(self.run.settings.policy(label), prompt)

    def _draw(self, given: RunPolicy, prompt: int) -> None:
        if given.label not in self._policies:
            self._policies[given.label] = self._policy(given)
        settings, started = self.run.settings, time.perf_counter()
        text = self.run.prompts[prompt].text
        condition: Any = text if self._pipe.manifest.model.reads_text else int(text)
        result = self._pipe.draw(
            condition,
            num_images_per_prompt=settings.images,
            seed=settings.seed_of(given, prompt, 0),
            policy=self._policies[given.label],
        )
        seconds = time.perf_counter() - started
        pictures = [
            self._picture(given, prompt, image, *one)
            for image, one in enumerate(zip(result.images, result.traces, strict=True))
        ]
        write_pictures(self.run.prompt_folder(given, prompt), pictures)
        self._add(entry(given.label, prompt, seconds))

    def _picture(self, given: RunPolicy, prompt: int, number: int, image: Any, trace: Trace) -> tuple[bytes, Any]:
        encoded = png(image)
        if trace.policy != given.policy:
            raise IntegrityError(
                f"{given.label} drew by {trace.policy}, not by {given.policy}", hint="draw it into another folder"
            )
        record = PictureRecord(
            prompt=prompt,
            image=number,
            text=self.run.prompts[prompt].text,
            seed=trace.seed,
            policy=trace.policy,
            fits=given.fits,
            tokens=trace.tokens,
            tokens_full=trace.tokens_full,
            kept=tuple(scale.tokens for scale in trace.scales),
            stopped_after=trace.stopped_after,
            operations=trace_flops(self._pipe.manifest.model, trace),
            file=file_name(number),
            sha256=hashlib.sha256(encoded).hexdigest(),
        )
        return encoded, record


def in_turn(labels: Sequence[str], prompt: int) -> tuple[str, ...]:
    """Labels in the order in which a prompt is drawn, another one first each time.

    Times are compared within a prompt: no policy always runs first.
    """
    turn = prompt % len(labels)
    return (*labels[turn:], *labels[:turn])


_worker: dict[str, Painter] = {}


def _begin(run: Run, engines: tuple[Any, ...], named: Named) -> None:
    _worker["here"] = Painter(run, load_engines(*engines), named)


def _draw(prompt: int, labels: Sequence[str]) -> int:
    _worker["here"].draw(prompt, labels)
    return prompt

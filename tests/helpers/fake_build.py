"""A build whose slow parts write a few bytes: what is tested with it is what happens around them.

As a program (`python fake_build.py SOURCES OUTPUT STAGE`), builds until STAGE begins, says so, and hangs there.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from ldp_runtime.bundle.files import Bundle
from ldp_runtime.errors import LdpError

from helpers.samples import plan
from ldp_export.building.build import build
from ldp_export.checkpoints.sources import Sources
from ldp_export.graphs.graph import Graph
from ldp_export.progress import ProgressEvent
from ldp_export.verification.cases import ReferenceCases
from ldp_export.verification.verify import Check, Report

OnStage = Callable[[str], None]


def sources_in(folder: Path) -> Sources:
    return Sources(folder / "transformer.safetensors", folder / "vae.safetensors")


@contextlib.contextmanager
def fakes(on_stage: OnStage = lambda name: None, passes: bool = True) -> Iterator[None]:
    """Graphs of a few bytes, no reference runs, and a verification that says what it is told.

    `on_stage` is called in the middle of each graph's export and of the reference runs; it may raise.
    """

    def export(graph: Graph, folder: Path, *_: object) -> None:
        name = graph.signature.name
        (folder / "model.onnx").write_text(f"graph {name}")
        on_stage(name)
        (folder / "weights.safetensors").write_bytes(b"weights")

    def record(*_: object) -> ReferenceCases:
        on_stage("reference")
        return ReferenceCases((), {})

    def verify(bundle: Bundle, device: str, **_: object) -> Report:
        on_stage("verify")
        check = Check("all logits", passes, 0.0 if passes else 1.0, 1e-5)
        return Report(bundle.manifest.digest, "verified" if passes else "rejected", device, "here", {}, (check,))

    with (
        mock.patch("ldp_export.building.stages.export_graph", export),
        mock.patch("ldp_export.verification.recording.infinity.record_infinity_cases", record),
        mock.patch("ldp_export.building.build.verify_bundle", verify),
    ):
        yield


def fake_build(
    sources: Sources, output: Path, on_stage: OnStage = lambda name: None, passes: bool = True
) -> tuple[Bundle, dict[str, str]]:
    """The bundle, and what each stage did: "reused" or "finished"."""
    states: dict[str, str] = {}

    def note(event: ProgressEvent) -> None:
        states[event.stage] = event.state

    with fakes(on_stage, passes):
        bundle, _ = build(plan(sources, output), note)
    return bundle, states


def refused(sources: Sources, output: Path, **options) -> LdpError:
    """The error that a build ends with."""
    try:
        fake_build(sources, output, **options)
    except LdpError as error:
        return error
    raise AssertionError("the build succeeded")


def main(sources: str, output: str, hang_at: str) -> None:
    # A shell that runs tests in the background has its children ignore the signal.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_stage(name: str) -> None:
        if name == hang_at:
            print("hanging", flush=True)
            time.sleep(600)

    fake_build(sources_in(Path(sources)), Path(output), on_stage)


if __name__ == "__main__":
    main(*sys.argv[1:])

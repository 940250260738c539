"""Worker that loads one candidate, draws the requested images, and reports what that took."""

from __future__ import annotations

import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from ldp_runtime.errors import InternalError, LdpError

if TYPE_CHECKING:
    from ldp_export.bench.worker.candidates import Candidate


class Worker:
    def __init__(self) -> None:
        self.candidate: Candidate | None = None
        self.device = "cpu"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            if "probe" in request:
                return self.probe(**request["probe"])
            return self.load(request["load"]) if "load" in request else self.draw(request["draw"])
        except LdpError as error:
            return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
        except Exception as error:  # whatever it is, the parent must hear of it
            traceback.print_exc()
            return {"error": {"code": type(error).__name__, "message": f"{type(error).__name__}: {error}"}}

    def load(self, fields: dict[str, Any]) -> dict[str, Any]:
        import torch

        from ldp_export.bench.worker.choose import load_candidate
        from ldp_export.bench.worker.messages import Job

        job = Job.of_json(fields)
        assert job.options.threads is not None
        torch.set_num_threads(job.options.threads)
        self.device = job.options.device
        started = time.perf_counter()
        self.candidate = load_candidate(job)
        return {"load_s": time.perf_counter() - started}

    def probe(self, threads: int, device: str) -> dict[str, Any]:
        from ldp_export.bench.worker.roofline import measured_peak

        return {"flops_per_s": measured_peak(threads, device)}

    def draw(self, fields: dict[str, Any]) -> dict[str, Any]:
        from dataclasses import asdict

        import numpy as np

        from ldp_export.bench.worker.messages import Drawn, DrawRequest
        from ldp_export.bench.worker.timing import Clock

        if self.candidate is None:
            raise InternalError("nothing is loaded")
        request = DrawRequest(**fields)
        clock = Clock(self.device)
        drawing = self.candidate.draw(request.prompts, request.seeds, request.policy)
        wall, cpu, device_ms = clock.stop()
        if request.save is not None:
            np.save(request.save, drawing.images.cpu().numpy())
        text, blocks, decode = (1e3 * s for s in (drawing.text_s, drawing.blocks_s, drawing.decode_s))
        drawn = Drawn(
            wall_ms=wall,
            cpu_ms=cpu,
            text_ms=text,
            blocks_ms=blocks,
            loop_ms=wall - text - blocks - decode,
            decode_ms=decode,
            tokens=drawing.tokens,
            row_tokens=drawing.row_tokens,
            tokens_full=drawing.tokens_full,
            peak_rss_mb=peak_rss_mb(),
            scales_ms=tuple(1e3 * scale[0] for scale in drawing.scales),
            loop_scales_ms=tuple(1e3 * scale[1] for scale in drawing.scales),
            scale_tokens=tuple(scale[2] for scale in drawing.scales),
            scale_rows=tuple(scale[3] for scale in drawing.scales),
            flops=drawing.flops,
            peak_device_mb=clock.peak_device_mb(),
            device_ms=device_ms,
        )
        return {"drawn": asdict(drawn)}


def peak_rss_mb() -> float:
    """Largest resident memory of this process so far, in MiB.

    On Linux from its own memory map: the usage counters of a spawned process also hold its parent's peak.
    """
    if sys.platform == "linux":
        with open("/proc/self/status") as file:  # noqa: PTH123
            peak = next((line.split()[1] for line in file if line.startswith("VmHWM:")), None)
        if peak is not None:
            return int(peak) / 1024
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss / (2**20 if sys.platform == "darwin" else 1024)

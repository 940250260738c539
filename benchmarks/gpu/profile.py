"""Where the time of one image goes, kernel by kernel."""

from __future__ import annotations

from pathlib import Path

import torch
from ldp_runtime.pruning.policy import Policy
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.gpu.candidates import Bench, Candidate

_SHOWN = 25
#: Images until graphs are replayed: one as it is, one that captures them, one to spare.
_BEFORE = 3


def profile(bench: Bench, batch: int, output: Path) -> None:
    """Writes a table of kernels of an eager and of a compiled unpruned image beside the result."""
    on_gpu = bench.model.device.type == "cuda"
    for name, candidate in {"eager": Candidate("eager"), "compiled": Candidate("compiled", Policy())}.items():
        path = output.with_name(f"{output.stem}-{bench.model.spec.name}-{name}-kernels.txt")
        try:
            path.write_text(_kernels(bench, candidate, batch, on_gpu) + "\n")
        except Exception as error:  # some virtual machines hide the counters; what failed before fails again
            print(f"    no profile of {name}: {error}", flush=True)
    bench.clear()


def _kernels(bench: Bench, candidate: Candidate, batch: int, on_gpu: bool) -> str:
    """A table of the kernels of one image, after those that compile and capture."""
    for _ in range(_BEFORE):
        bench.draw(candidate, batch)
    with torch_profile(activities=[ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]) as found:
        bench.draw(candidate, batch)
        if on_gpu:
            torch.cuda.synchronize()
    return found.key_averages().table(
        sort_by="self_device_time_total" if on_gpu else "self_cpu_time_total",
        row_limit=_SHOWN,
        max_name_column_width=100,
    )

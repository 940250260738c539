"""Where the time of one image goes, kernel by kernel."""

from __future__ import annotations

from pathlib import Path

import torch
from gpu_candidates import Bench, Candidate
from ldp_runtime.pruning.policy import Policy
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

_SHOWN = 25


def profile(bench: Bench, batch: int, output: Path) -> None:
    """Writes a table of kernels of an eager and of a compiled unpruned image beside the result."""
    on_gpu = bench.model.device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    for name, candidate in {"eager": Candidate("eager"), "compiled": Candidate("compiled", Policy())}.items():
        try:
            bench.draw(candidate, batch)
            with torch_profile(activities=activities) as found:
                bench.draw(candidate, batch)
                if on_gpu:
                    torch.cuda.synchronize()
        except RuntimeError as error:  # some virtual machines hide the counters
            print(f"    no profile of {name}: {error}", flush=True)
            continue
        table = found.key_averages().table(
            sort_by="self_device_time_total" if on_gpu else "self_cpu_time_total",
            row_limit=_SHOWN,
            max_name_column_width=100,
        )
        path = output.with_name(f"{output.stem}-{bench.model.spec.name}-{name}-kernels.txt")
        path.write_text(table + "\n")
    bench.clear()

"""Prints the result as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from ldp_calibration.stats import Ratio
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ldp_export.bench.compare import Change
from ldp_export.bench.result import BenchResult, CandidateResult

_WIDTH = 150


def render(result: BenchResult) -> RenderableType:
    """Renders two tables (latency with quality, then where the time goes) and the notes."""
    parts: list[RenderableType] = [_latency(result), _phases(result)]
    loss = result.precision_loss
    if loss is not None:
        parts.append(Text(f"engines against eager PyTorch, nothing pruned: {loss.psnr_db:.1f} dB"))
    parts += [
        Text(f"{c.name}, batch {c.batch}: {c.precision_psnr_db:.1f} dB against the first bundle's engines")
        for c in result.candidates
        if c.precision_psnr_db is not None
    ]
    parts.append(Text(f"of peak: the blocks' operations, of {result.peak_gflops:.0f} GFLOP/s measured", style="dim"))
    parts.append(Text(f"times {result.statistics['times'].partition(', ')[2]}", style="dim"))
    parts.append(Text(f"ratios with their 95 % interval: {result.statistics['speedup']}", style="dim"))
    parts += [Text(f"note: {note}", style="yellow") for note in result.notes]
    return Group(*parts)


def print_result(result: BenchResult, console: Console | None = None) -> None:
    console = console or Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = _WIDTH
    console.print(render(result))


def print_changes(changes: Sequence[Change]) -> None:
    """Prints the comparison of two results."""
    table = Table(box=box.SIMPLE_HEAD, title="times of the second result over those of the first")
    table.add_column("candidate", no_wrap=True)
    for title in ("batch", "before ms", "after ms", "ratio", "95 % interval"):
        table.add_column(title, justify="right")
    table.add_column("verdict")
    for c in changes:
        interval = "" if c.low is None or c.high is None else f"{c.low:.3f}-{c.high:.3f}"
        cells = (f"{c.before_ms:.1f}", f"{c.after_ms:.1f}", f"{c.ratio:.3f}", interval, c.verdict)
        table.add_row(c.name, str(c.batch), *cells)
    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table)
    if any(c.corrected for c in changes):
        console.print("ratios are divided by eager PyTorch's own ratio: the machine's drift is taken out", style="dim")


def _latency(result: BenchResult) -> Table:
    model, machine = result.model, result.hardware
    height, width = model.image
    where = machine["gpu"] if result.settings["device"] != "cpu" else machine["cpu"]
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{model.name}, {height}x{width}, {where}, {result.settings['threads']} threads"
    )
    table.add_column("candidate", overflow="fold", max_width=46)
    for title in ("batch", "p50 ms", "p99", "vs eager", "vs unpruned", "PSNR dB", "objects", "SSIM", "tokens"):
        table.add_column(title, justify="right", no_wrap=True)
    for c in result.candidates:
        table.add_row(
            c.name,
            str(c.batch),
            f"{c.p50_ms:.1f}",
            f"{c.p99_ms:.1f}",
            _ratio(c.speedup_vs_eager),
            _ratio(c.speedup_vs_unpruned),
            _number(c.psnr_db),
            _number(c.psnr_objects_db),
            _number(c.ssim, 3),
            f"{c.tokens_computed:.0f}/{c.tokens_full}",
        )
    return table


def _phases(result: BenchResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="mean milliseconds of a call by phase; cold start and memory apart")
    table.add_column("candidate", no_wrap=True)
    titles = ("batch", "text", "blocks", "loop", "decode", "CPU p50", "of peak", "load s", "first ms", "peak MiB")
    for title in titles:
        table.add_column(title, justify="right")
    for c in result.candidates:
        table.add_row(c.name, str(c.batch), *_phase_cells(c))
    return table


def _phase_cells(c: CandidateResult) -> list[str]:
    p = c.phases_ms
    times = [f"{ms:.1f}" for ms in (p.text, p.blocks, p.loop, p.decode, c.cpu_p50_ms)]
    memory = c.peak_rss_mb if c.peak_device_mb is None else c.peak_device_mb
    return [*times, f"{c.peak_share:.0%}", f"{c.load_s:.2f}", f"{c.first_ms:.1f}", f"{memory:.0f}"]


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    interval = "" if ratio.low is None else f" [{ratio.low:.2f}-{ratio.high:.2f}]"
    return f"{ratio.value:.2f}{interval}"

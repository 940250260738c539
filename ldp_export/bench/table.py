"""The result as a table for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ldp_export.bench.result import BenchResult, CandidateResult
from ldp_export.bench.stats import Ratio

_WIDTH = 120


def render(result: BenchResult) -> RenderableType:
    """Two tables (latency with quality, then where the time goes) and the notes."""
    parts: list[RenderableType] = [_latency(result), _phases(result)]
    loss = result.precision_loss
    if loss is not None:
        parts.append(Text(f"engines against eager PyTorch, nothing pruned: {loss.psnr_db:.1f} dB"))
    parts.append(Text(f"ratios with their 95 % interval: {result.statistics['speedup']}", style="dim"))
    parts += [Text(f"note: {note}", style="yellow") for note in result.notes]
    return Group(*parts)


def print_result(result: BenchResult, console: Console | None = None) -> None:
    console = console or Console()
    if not console.is_terminal:  # a file or a pipe has no width of its own
        console.width = _WIDTH
    console.print(render(result))


def _latency(result: BenchResult) -> Table:
    model, machine = result.model, result.hardware
    height, width = model.image
    where = machine["gpu"] if result.settings.device != "cpu" else machine["cpu"]
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{model.name}, {height}x{width}, {where}, {result.settings.threads} threads"
    )
    table.add_column("candidate", no_wrap=True)
    for title in ("batch", "p50 ms", "p95 ms", "vs eager", "vs unpruned", "PSNR dB", "tokens"):
        table.add_column(title, justify="right")
    for c in result.candidates:
        table.add_row(
            c.name,
            str(c.batch),
            f"{c.p50_ms:.1f}",
            f"{c.p95_ms:.1f}",
            _ratio(c.speedup_vs_eager),
            _ratio(c.speedup_vs_unpruned),
            "-" if c.psnr_db is None else f"{c.psnr_db:.1f}",
            f"{c.tokens_computed:.0f}/{c.tokens_full}",
        )
    return table


def _phases(result: BenchResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="mean milliseconds of a call by phase; cold start and memory apart")
    table.add_column("candidate", no_wrap=True)
    titles = ("batch", "text", "blocks", "loop", "decode", "CPU p50 ms", "load s", "first ms", "peak MiB")
    for title in titles:
        table.add_column(title, justify="right")
    for c in result.candidates:
        table.add_row(c.name, str(c.batch), *_phase_cells(c))
    return table


def _phase_cells(c: CandidateResult) -> list[str]:
    p = c.phases_ms
    times = [f"{ms:.1f}" for ms in (p.text, p.blocks, p.loop, p.decode, c.cpu_p50_ms)]
    return [*times, f"{c.load_s:.2f}", f"{c.first_ms:.1f}", f"{c.peak_rss_mb:.0f}"]


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    interval = "" if ratio.low is None else f" [{ratio.low:.2f}-{ratio.high:.2f}]"
    return f"{ratio.value:.2f}{interval}"

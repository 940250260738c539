"""Page of a report: one HTML file that loads nothing, and in which every text is escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from ldp_export.gpu_report.report import Benched, Built, Drawn, GpuReport, Machine, Row, Verified

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --done: #2a7d3c; --failed: #c0392b; }
@media (prefers-color-scheme: dark) { :root { --done: #7fd492; --failed: #ff9384; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem; border-bottom: 1px solid var(--line); }
.done { color: var(--done); } .failed { color: var(--failed); font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; font-size: .85rem; }
figure { display: inline-block; margin: .3rem .6rem .3rem 0; } figcaption { font-size: .85rem; }
.wide { overflow-x: auto; }
"""
#: Nothing is loaded or run: styles and pictures are in the file.
_CONTENT = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(report: GpuReport) -> str:
    """The whole page."""
    counts = ", ".join(
        f"{sum(row.state == state for row in report.rows)} {state}"
        for state in ("done", "failed", "refused", "left out")
    )
    unfinished = "" if report.complete else "<p><b>Not finished:</b> more steps follow, or it was stopped.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_CONTENT}">'
        '<meta name="viewport" content="width=device-width"><title>ldp-export on a GPU</title>'
        f"<style>{_STYLE}</style></head><body><h1>ldp-export on a GPU</h1>"
        f"<p>{_e(report.created)}, version {_e(report.version)}, device {_e(report.device)}, "
        f"{report.minutes:g} minutes: {counts}.</p>{unfinished}"
        f"{''.join(_machine(row.figures) for row in report.rows if isinstance(row.figures, Machine))}"
        f"<h2>Steps</h2><div class=wide><table><tr><th>step<th>state<th>seconds<th>found</tr>"
        f"{''.join(map(_row, report.rows))}</table></div></body></html>\n"
    )


def _e(value: object) -> str:
    return escape(str(value))


def _row(row: Row) -> str:
    device = "" if row.device is None else f" on {_e(row.device)}"
    return (
        f'<tr><td>{_e(row.title)}{device}<td class="{_e(row.state.split()[0])}">{_e(row.state)}'
        f"<td>{row.seconds:.1f}<td>{_error(row)}{_figures(row)}</tr>"
    )


def _error(row: Row) -> str:
    hint = f"<p>{_e(row.hint)}</p>" if row.hint else ""
    return f"<pre>{_e(row.error)}</pre>{hint}" if row.error else ""


def _figures(row: Row) -> str:
    figures = row.figures
    if isinstance(figures, Built):
        return f"{_e(figures.bundle_state)}, {figures.checks} checks, {figures.mebibytes:.1f} MiB"
    if isinstance(figures, Verified):
        worst = "not finite" if figures.largest_share is None else f"{figures.largest_share:.2f} of what is allowed"
        named = "".join(f"<li>{_e(f.name)}: {_e(f.measured)} of {_e(f.limit)}</li>" for f in figures.failures)
        return f"{figures.checks} checks, {figures.failed} failed; largest error {worst}" + (
            named and f"<ul>{named}</ul>"
        )
    if isinstance(figures, Drawn):
        return _drawn(figures)
    if isinstance(figures, Benched):
        return _table(
            ("candidate", "ms", "over eager", "over unpruned", "PSNR", "MiB by PyTorch"),
            (
                (
                    c.name,
                    f"{c.p50_ms:.1f}",
                    _n(c.over_eager),
                    _n(c.over_unpruned),
                    _n(c.psnr_db, 1),
                    _n(c.peak_device_mb, 0),
                )
                for c in figures.candidates
            ),
        )
    return ""


def _drawn(drawn: Drawn) -> str:
    graphs = "" if drawn.cuda_graphs is None else f"; {drawn.cuda_graphs} CUDA graphs"
    share = drawn.used_bytes / drawn.predicted_bytes if drawn.predicted_bytes else 0.0
    memory = (
        f"<p>loaded in {drawn.load_s:.1f} s; memory predicted {drawn.predicted_bytes / 2**20:.0f} MiB, used "
        f"{drawn.used_bytes / 2**20:.0f} MiB ({share:.2f} of it){graphs}</p>"
    )
    return memory + "".join(
        "<figure>"
        + (f'<img alt="drawn with {_e(p.policy)}" src="data:image/png;base64,{_e(p.png)}">' if p.png else "")
        + f"<figcaption>{_e(p.policy)}: {p.tokens} of {p.tokens_full} tokens, {1e3 * p.seconds:.0f} ms"
        + ("" if p.psnr_db is None else f", {p.psnr_db:.1f} dB from the processor's")
        + "</figcaption></figure>"
        for p in drawn.pictures
    )


def _n(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{_e(cell)}' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{_e(title)}' for title in titles)}</tr>{body}</table>"


def _machine(machine: Machine) -> str:
    facts = ((fact.name, f"{'✓' if fact.found else '✗'} {fact.value}") for fact in machine.machine)
    verdicts = (
        (("build: " if v in machine.build else "run: ") + v.what, "yes" if v.works else f"no: {v.reason}")
        for v in (*machine.build, *machine.run)
    )
    return (
        f"<h2>Machine</h2>{_table(('', 'found'), facts)}"
        f"{_table(('package', 'version'), machine.packages.items())}{_table(('what', 'works'), verdicts)}"
    )

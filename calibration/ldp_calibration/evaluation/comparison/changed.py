"""Sheet of the pictures whose verdict changed, worst first: a page of HTML that lies in the run and shows its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from ldp_runtime.system.disk import written_result

from ldp_calibration.evaluation.comparison.compare import Comparison, PolicyResult
from ldp_calibration.evaluation.pictures import file_name
from ldp_calibration.evaluation.run import COMPARE
from ldp_calibration.evaluation.scorers.choose import kind_of

#: Most pairs shown of a policy.
MOST_SHOWN = 60
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; color: #222; }
h2 { margin: 2.2rem 0 .4rem; border-bottom: 1px solid #ccc; }
ul { list-style: none; padding: 0; display: grid; gap: 1rem; }
ul { grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
li { border: 1px solid #ddd; border-radius: 6px; padding: .6rem; overflow-wrap: anywhere; }
li.lost { border-left: 5px solid #b3261e; } li.gained { border-left: 5px solid #2e7d32; }
figure { display: inline-block; width: 47%; margin: 0 1% .3rem; vertical-align: top; }
img { width: 100%; height: auto; background: #eee; } figcaption, small { font-size: .8rem; color: #555; }
p { margin: .2rem 0; }
"""


@dataclass(frozen=True)
class Change:
    """A picture whose verdict differs from that of the reference's picture.

    Attributes:
        gained: new score less the old one, 1 or -1.
        fidelity: PSNR (or another score against the twin), where the run has one.
    """

    prompt: int
    image: int
    gained: float
    fidelity: float | None


def verdict_scorer(comparison: Comparison) -> str | None:
    """First scorer of the comparison that gives verdicts."""
    return next((name for name in comparison.scorers if kind_of(name).is_verdict), None)


def changes(comparison: Comparison, scorer: str, label: str) -> list[Change]:
    """Changed pictures of a policy: those lost first, and of these the ones least like the reference's."""
    scores, base = comparison.scores[scorer, label], comparison.scores[scorer, comparison.reference]
    twin = next((name for name in comparison.scorers if kind_of(name).name == "psnr"), None)
    fidelity = None if twin is None else comparison.scores.get((twin, label))
    found = [
        Change(i, j, float(scores[i, j] - base[i, j]), None if fidelity is None else float(fidelity[i, j]))
        for i, j in zip(*(scores != base).nonzero(), strict=True)
    ]
    return sorted(found, key=lambda c: (c.gained, c.fidelity or 0.0, c.prompt, c.image))


def write_sheet(comparison: Comparison, path: Path) -> bool:
    """Writes the sheet, in the run's folder for comparisons. False if no scorer gives verdicts: nothing is written."""
    scorer = verdict_scorer(comparison)
    if scorer is None:
        return False
    shown = [
        one
        for one in sorted(comparison.policies, key=lambda one: one.policy.other_seeds)  # the null run comes last
        if one.policy.label != comparison.reference and scorer in one.results
    ]
    parts = [_policy(comparison, scorer, one) for one in shown]
    title = escape(f"{comparison.run.settings.benchmark}: verdicts of {scorer} that changed")
    # Nothing is loaded but the pictures beside the page, and no script runs.
    policy = "default-src 'none'; img-src 'self' file:; style-src 'unsafe-inline'"
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{_STYLE}</style></head>\n'
        f"<body><h1>{title}</h1>\n<p>Left the picture of {escape(comparison.reference)}, right the policy's. Lost ones "
        f"come first, the least alike before others.</p>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    with written_result(path) as scratch:
        scratch.write_text(page, encoding="utf-8")
    return True


def _policy(comparison: Comparison, scorer: str, one: PolicyResult) -> str:
    found = changes(comparison, scorer, one.policy.label)
    lost = sum(change.gained < 0 for change in found)
    items = "\n".join(_item(comparison, one, change) for change in found[:MOST_SHOWN])
    more = f"<p>{len(found) - MOST_SHOWN} more are not shown.</p>" if len(found) > MOST_SHOWN else ""
    counts = f"{lost} lost, {len(found) - lost} gained, of {comparison.scores[scorer, one.policy.label].size}"
    name = escape(one.policy.label)
    written = f"<small>{escape(one.policy.policy)}</small>"
    return f"<section><h2>{name}</h2>\n<p>{counts} {written}</p>\n<ul>{items}</ul>{more}</section>"


def _item(comparison: Comparison, one: PolicyResult, change: Change) -> str:
    prompt = comparison.run.prompts[change.prompt]
    kind, word = ("lost", "accepted, then not") if change.gained < 0 else ("gained", "not accepted, then so")
    likeness = "" if change.fidelity is None else f", {change.fidelity:.1f} dB"
    tag = "" if prompt.tag is None else f"{escape(prompt.tag)}, "
    base = comparison.of(comparison.reference)
    figures = "".join(_figures(comparison, change, (base, one)))
    return (
        f'<li class="{kind}"><p>{escape(prompt.text)}</p>{figures}'
        f"<small>{tag}prompt {change.prompt}, picture {change.image}: {word}{likeness}</small></li>"
    )


def _figures(comparison: Comparison, change: Change, shown: tuple[PolicyResult, ...]) -> Iterator[str]:
    run = comparison.run
    for one in shown:
        path = run.prompt_folder(one.policy, change.prompt) / file_name(change.image)
        place = quote(f"../{path.relative_to(run.folder).as_posix()}")
        label = escape(one.policy.label)
        yield f'<figure><img loading="lazy" src="{place}" alt="{label}"><figcaption>{label}</figcaption></figure>'


def sheet_path(comparison: Comparison) -> Path:
    return comparison.run.folder / COMPARE / "changed.html"

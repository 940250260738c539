"""The GPU section of the results page, from the JSON of `gpu.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gpu_kernels
from gpu_chart import p50, share_of_peak
from gpu_kernels import KernelTimes

#: Times faster than eager, of the 8B shape on an H100, batch 1.
TARGETS = {"compiled, unpruned": 2.0, "compiled, LD, no scale skipped": 4.0, "compiled, LD, last two skipped": 6.0}
_HEADS = (
    "| model | batch | candidate | p50 ms | over eager | blocks TFLOP | of peak | first call s | peak MiB |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
_METHOD = """Times between CUDA events around whole images (noise, scales, decoder; no text encoder); ratios are of
medians, without an interval. *Eager* is the original loop, with the fastest of PyTorch's attention kernels, noise
drawn on the device and keys remembered in bfloat16. *Text once, K/V in place* is this toolkit's loop, not compiled:
text keys and values once an image, no mask, each block's own written where they are read. Then torch.compile, then
CUDA graphs of calls of up to 2,560 tokens times rows, then policies. Graphs and attention plans are made per shape
before samples are taken: a policy whose counts differ from prompt to prompt meets new shapes, and pays for them.
*fp8* rounds the blocks' matrix products to 8-bit floats: another function, whose loss is given with `gpu-fp8.json`
where it was measured. *Of peak* is what the blocks computed over the time of the whole image, against the rate of a
large bfloat16 matrix product on the same card."""


def section(
    result: dict[str, Any] | None,
    pictures: Sequence[str] = (),
    loss: dict[str, Any] | None = None,
    kernels: Sequence[KernelTimes] = (),
) -> str:
    """Markdown; where nothing was measured, it says so.

    Args:
        loss: what `gpu_fp8.py` wrote.
        kernels: what `gpu.py --profile` found.
    """
    if result is None:
        title = "## The 2B and 8B architectures on a GPU"
        return "\n\n".join([title, "Not measured yet: `python benchmarks/gpu.py` on a machine with one.", *_loss(loss)])
    machine = result["hardware"] | {"peak_bfloat16_tflops": f"{result['hardware']['peak_bfloat16_tflops']:.0f}"}
    hardware = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "clocks")
    clocks = [result["hardware"].get("clocks"), result.get("clocks_after")]
    lines = [_row(result, entry) for entry in result["results"]]
    parts = [
        "## The 2B and 8B architectures on a GPU, random weights: speed only",
        f"`gpu.json`, {result['created'][:10]}: {hardware}. Keep shares {result['keep']}, branch stopped after scale "
        f"{result.get('stop_scale')}: {result.get('keep_from', 'assumed, not calibrated')} (as it stood then).",
        _METHOD,
        *_attention(result),
        "\n".join([_HEADS, *lines]),
        *_verdicts(result),
        *gpu_kernels.section(kernels),
        *_disagreement(result),
        *_loss(loss),
        *(f"![what each technique and each policy adds]({picture})" for picture in pictures),
    ]
    parts += [f"```\n{text}\n```" for text in clocks if text]
    return "\n\n".join(parts)


def _row(result: dict[str, Any], entry: dict[str, Any]) -> str:
    cells = [entry["model"], str(entry["batch"]), entry["candidate"]]
    if "error" in entry:
        cells += [f"failed: {entry['error']}", *[""] * 5]
    else:
        memory, peak = entry["peak_device_mb"], result["hardware"]["peak_bfloat16_tflops"]
        cells += [f"{p50(entry):.1f}", _over_eager(result, entry), f"{entry['blocks_tflop']:.1f}"]
        cells += [f"{share_of_peak(entry, peak):.0%}", f"{entry['first_s']:.1f}"]
        cells += ["" if memory is None else f"{memory:.0f}"]
    return "| " + " | ".join(cells) + " |"


def _attention(result: dict[str, Any]) -> list[str]:
    """How long the kernels took that both loops could choose from."""
    times = {model: found for model, found in result.get("attention_ms", {}).items() if found}
    if not times:
        return []
    words = (
        f"{model}: " + ", ".join(f"{name} {t if isinstance(t, str) else f'{t:.2f} ms'}" for name, t in found.items())
        for model, found in times.items()
    )
    return [f"The last scale's self-attention of one block, both branches: {'; '.join(words)}."]


def _verdicts(result: dict[str, Any]) -> list[str]:
    """A line for each target of the 8B shape."""
    found = []
    for entry in result["results"]:
        target, speed = TARGETS.get(entry["candidate"]), _speedup(result, entry)
        if entry["model"] == "infinity-8b" and entry["batch"] == 1 and target and speed:
            verdict = "reached" if speed >= target else "missed"
            words = (
                f"{verdict}: {entry['candidate']} is {speed:.2f} times as fast as eager, to be reached was {target:g}"
            )
            found.append(f"- {words} on an H100 ({_limit(result, entry, target)})")
    return ["\n".join(found)] if found else []


def _limit(result: dict[str, Any], entry: dict[str, Any], target: float) -> str:
    """What the arithmetic alone takes at the measured rate of a matrix product, and what the target leaves."""
    least = entry["blocks_tflop"] / result["hardware"]["peak_bfloat16_tflops"] * 1e3
    allowed = p50(entry) * (_speedup(result, entry) or 0) / target
    return f"that leaves {allowed:.0f} ms, of which the blocks' operations take {least:.0f} at a matrix product's rate"


def _disagreement(result: dict[str, Any]) -> list[str]:
    found = [
        f"{entry['model']}, {entry['candidate']}: {max(entry['disagreement']):.1%}"
        for entry in result["results"]
        if "disagreement" in entry
    ]
    words = "Logits given the original loop's bits, how far from its own at the worst scale, relative to their norm: "
    return [words + "; ".join(found) + "."] if found else []


def _loss(loss: dict[str, Any] | None) -> list[str]:
    if loss is None:
        return []
    return [
        f"What 8-bit floats cost, on the trained embedded model (`gpu-fp8.json`, {loss['prompts']} prompts x "
        f"{loss['seeds']} seeds, emulated on a CPU): given the same picture so far, {loss['flipped']:.2%} of the bits "
        f"flip ({loss['flipped_bfloat16']:.2%} by rounding to bfloat16 alone); pictures drawn freely are at "
        f"{loss['psnr_db']:.1f} dB of the unrounded ones ({loss['psnr_bfloat16_db']:.1f} dB by bfloat16 alone)."
    ]


def _over_eager(result: dict[str, Any], entry: dict[str, Any]) -> str:
    speed = _speedup(result, entry)
    return "" if speed is None else f"{speed:.2f}"


def _speedup(result: dict[str, Any], entry: dict[str, Any]) -> float | None:
    if "error" in entry:
        return None
    same = (e for e in result["results"] if (e["model"], e["batch"]) == (entry["model"], entry["batch"]))
    eager = next((e for e in same if e["candidate"] == "eager" and "error" not in e), None)
    return None if eager is None else p50(eager) / p50(entry)

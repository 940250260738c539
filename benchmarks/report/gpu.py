"""The page on GPUs, from the JSON of `gpu.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu import kernels as gpu_kernels
from benchmarks.gpu.kernels import KernelTimes
from benchmarks.report.gpu_chart import p50, share_of_peak

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
*fp8* rounded the blocks' matrix products to 8-bit floats at all scales, *late scales* do so at the last ones only.
*Of peak* is what the blocks computed over the time of the whole image, against the rate of a
large bfloat16 matrix product on the same card."""


def page(
    result: dict[str, Any] | None,
    pictures: Sequence[str] = (),
    loss: dict[str, Any] | None = None,
    kernels: Sequence[KernelTimes] = (),
) -> str:
    """Markdown; where nothing was measured, it says so.

    Args:
        loss: what `quantized_scales.py` wrote.
        kernels: what `gpu.py --profile` found.
    """
    if result is None:
        title = "# The 2B and 8B architectures on a GPU"
        return "\n\n".join([title, "Not measured yet: `python -m benchmarks.gpu` on a machine with one.", *_loss(loss)])
    machine = result["hardware"] | {"peak_bfloat16_tflops": f"{result['hardware']['peak_bfloat16_tflops']:.0f}"}
    hardware = ", ".join(f"{name} {value}" for name, value in machine.items() if name != "clocks")
    clocks = [result["hardware"].get("clocks"), result.get("clocks_after")]
    lines = [_row(result, entry) for entry in result["results"]]
    parts = [
        "# The 2B and 8B architectures on a GPU, random weights: speed only",
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
    """What blocks in 8 bits lose."""
    if loss is None:
        return []
    words = (
        f"What 8 bits in the blocks cost, on the trained embedded model (`late-precision-cpu.json`, {loss['prompts']} "
        f"prompts x {loss['seeds']} seeds, bfloat16 elsewhere, emulated on a CPU): bits that flip given the same "
        "picture so far, and the PSNR of pictures drawn freely, both against float32."
    )
    heads = "| blocks | share of the tokens | scales | bits flipped | PSNR dB | worst |\n|---|---|---|---|---|---|"
    rows = [
        f"| {row['precision']} | {row['share']:.0%} | {row['scales']} | {row['flipped']:.2%} | {row['psnr_db']:.1f} | "
        f"{row['worst_psnr_db']:.1f} |"
        for row in loss["rows"]
    ]
    return [words, "\n".join([heads, *rows])]


def _over_eager(result: dict[str, Any], entry: dict[str, Any]) -> str:
    speed = _speedup(result, entry)
    return "" if speed is None else f"{speed:.2f}"


def _speedup(result: dict[str, Any], entry: dict[str, Any]) -> float | None:
    if "error" in entry:
        return None
    same = (e for e in result["results"] if (e["model"], e["batch"]) == (entry["model"], entry["batch"]))
    eager = next((e for e in same if e["candidate"] == "eager" and "error" not in e), None)
    return None if eager is None else p50(eager) / p50(entry)

"""A released architecture at its true size, from checkpoint to picture, through the product's own commands.

    python -m benchmarks.study.true_size --model infinity-2b --size 0.25M --scratch DIR

The checkpoint has random weights in the released layout, and so has the text encoder (a T5 without decoder). They lie
in DIR as `ldp-export fetch --local-dir` leaves them. Then come `build`, `verify`, `generate`, repeated calls of one
loaded pipeline, the logits of every scale against the streamed reference model, and `bench`. Each step is a process of
its own, whose anonymous memory and time are measured, beside what was predicted. A step that has ended is not run
again: what is killed goes on. The result is a JSON file in `benchmarks/results`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.paths import RESULTS
from benchmarks.study.large_build import disk_bytes, sampled

PROMPT = "a red circle to the left of a large blue square"
POLICIES = ("none", "ld")


class Steps:
    """Steps whose results are kept in a file, so that none is run twice."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def run(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if name not in self.done:
            click.echo(f"{name} ...")
            started = time.perf_counter()
            self.done[name] = {"seconds": 0.0} | work()
            self.done[name]["seconds"] = self.done[name]["seconds"] or round(time.perf_counter() - started, 1)
            self.path.write_text(json.dumps(self.done, indent=1) + "\n")
        click.echo(f"{name}: {json.dumps(self.done[name])[:300]}")
        return self.done[name]


def command(words: list[str], scratch: Path) -> dict[str, Any]:
    """Output, seconds, lines with their time, and peaks of memory and disk of a process.

    Raises:
        click.ClickException: it failed.
    """
    started, lines = time.perf_counter(), list[tuple[float, str]]()
    with sampled(scratch) as sampler:
        before = disk_bytes(scratch)
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((round(time.perf_counter() - started, 1), line.rstrip()))
            click.echo(f"  {lines[-1][0]:8.1f} s, {sampler.mark() / 1e9:5.2f} GB  {lines[-1][1][:160]}")
        failed = process.wait()
    if failed:
        raise click.ClickException(f"{' '.join(words)} ended with {failed}")
    return {
        "peak_anonymous_bytes": sampler.memory,
        "peak_disk_bytes": sampler.disk - before,
        "lines": [list(line) for line in lines if not line[1].startswith(("{", "}", " ", "["))][-60:],
        "output": _json_of([text for _, text in lines]),
    }


def _json_of(lines: list[str]) -> Any:
    """JSON that a command printed behind its lines of progress; None if there is none."""
    begins = next((i for i, line in enumerate(lines) if line.startswith(("{", "["))), None)
    try:
        return None if begins is None else json.loads("\n".join(lines[begins:]))
    except ValueError:
        return None


def write_released(model: str, folder: Path) -> dict[str, Any]:
    """Files of a model as `fetch --local-dir` leaves them, of random weights."""
    import torch
    from safetensors.torch import load_file

    from ldp_export.checkpoints.synthetic import write_checkpoint
    from ldp_export.checkpoints.synthetic_t5 import write_t5
    from ldp_export.models.registry import find_model
    from ldp_export.models.t5 import T5Sizes

    spec = find_model(model)
    hub = spec.hub
    sizes = spec.text_encoder
    assert hub is not None
    assert isinstance(sizes, T5Sizes)
    places = {part.name: folder / part.folder / part.path for part in hub.parts}
    shutil.rmtree(folder, ignore_errors=True)  # of a try that was killed
    written = write_checkpoint(spec, folder / "new", shard_bytes=2**50 if hub.main.is_file else 2**32)
    for part, source in written.items():
        place = places[part]
        if source.is_dir():
            source.rename(place)
        else:
            torch.save(load_file(source), place)
            source.unlink()
    shutil.rmtree(folder / "new", ignore_errors=True)
    write_t5(sizes, places["text_encoder"], decoder=False)
    return {"bytes": disk_bytes(folder)}


def drawn(bundle: Path, policy: str, calls: int, output: Path) -> dict[str, Any]:
    """Repeated calls of one loaded pipeline: seconds, memory, and tokens of each. Runs in a process of its own."""
    import psutil
    from ldp_runtime import Pipeline
    from ldp_runtime.bundle.files import open_bundle
    from ldp_runtime.pipeline.memory import estimate_memory

    opened = open_bundle(bundle, "sizes")
    started, found = time.perf_counter(), list[dict[str, Any]]()
    with sampled(output.parent / "none") as sampler:
        pipe = Pipeline.load(opened, max_batch=1)
        loaded = {"load_s": round(time.perf_counter() - started, 1), "loaded_anonymous_bytes": sampler.mark()}
        for call in range(calls):
            started = time.perf_counter()
            result = pipe(PROMPT, seed=call, policy=policy)
            trace = result.traces[0].to_json()
            for scale in trace["scales"]:
                del scale["kept"]
            result.images[0].save(output.parent / f"{policy}-{call}.png")
            found.append(
                {
                    "seconds": round(time.perf_counter() - started, 2),
                    "peak_anonymous_bytes": sampler.mark(),
                    "resident_bytes": psutil.Process().memory_info().rss,
                    "trace": trace,
                }
            )
    predicted = estimate_memory(opened.manifest, 1)
    return loaded | {"policy": policy, "predicted_bytes": predicted.total, "predicted": str(predicted), "calls": found}


def compared(model: str, bundle: Path, folder: Path, policy: str) -> dict[str, Any]:
    """Logits of every scale of one picture against the streamed reference model, given the same tokens."""
    from ldp_runtime.bundle.files import open_bundle

    from benchmarks.study.forced_logits import forced_logits, overheard
    from ldp_export.hub.fetch import fetched_sources
    from ldp_export.models.registry import InfinitySpec, find_model

    opened = open_bundle(bundle, "sizes")
    run = overheard(opened, PROMPT, policy)
    spec = find_model(model)
    assert isinstance(spec, InfinitySpec)
    reference = forced_logits(fetched_sources(spec, folder, None), spec, opened.manifest.schedule(), run)
    scales = []
    for k, (ours, theirs) in enumerate(zip(run.logits, reference, strict=True)):
        rows = min(len(ours), len(theirs))
        difference = (ours[:rows].double() - theirs[:rows].double()).abs()
        scales.append(
            {
                "scale": k,
                "tokens": ours.shape[1],
                "rows": rows,
                "largest_error": float(difference.max()),
                "rms_of_logits": float(theirs.double().pow(2).mean().sqrt()),
            }
        )
    return {"policy": policy, "scales": scales}


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@click.option("--model", default="infinity-2b", show_default=True)
@click.option("--size", default="0.25M", show_default=True)
@click.option("--chunk", type=int, help="Blocks per graph.")
@click.option("--build-options", default="", help="Further options of `build`, such as '--quantize int8'.")
@click.option("--name", help="Of the result.  [default: MODEL-SIZE]")
@click.option("--scratch", type=click.Path(path_type=Path), required=True, help="A folder with room.")
@click.option("--steps", default="checkpoint,plan,build,verify,generate,draw,logits,bench", show_default=True)
@click.option("--inside", hidden=True, help="Run one step in this process, and print its JSON.")
def main(
    model: str,
    size: str,
    chunk: int | None,
    build_options: str,
    name: str | None,
    scratch: Path,
    steps: str,
    inside: str | None,
) -> None:
    name = name or f"{model}-{size}"
    released, bundle, work = scratch / model, scratch / f"{name}-bundle", scratch / f"{name}-work"
    if inside is not None:
        step, _, policy = inside.partition(":")
        found = drawn(bundle, policy, 2, work / "x") if step == "draw" else compared(model, bundle, released, policy)
        click.echo(json.dumps(found))
        return
    work.mkdir(parents=True, exist_ok=True)
    kept, wanted = Steps(work / "steps.json"), steps.split(",")
    program = [sys.executable, "-m", "ldp_export"]
    build = [*program, "build", "--model", model, "--local-dir", str(released), "--size", size]
    build += ["--output", str(bundle), *(["--chunk", str(chunk)] if chunk else []), *build_options.split()]
    again = [sys.executable, "-m", "benchmarks.study.true_size", "--model", model, "--size", size, "--name", name]
    again += ["--scratch", str(scratch), "--inside"]
    if "checkpoint" in wanted and not (released / "text_encoder" / "tokenizer.json").exists():
        kept.run("checkpoint", lambda: write_released(model, released))
    if "plan" in wanted:
        kept.run("plan", lambda: command([*build, "--dry-run", "--json"], work))
    if "build" in wanted:
        kept.run("build", lambda: command(build, bundle) | {"bundle_bytes": disk_bytes(bundle)})
    if "verify" in wanted:
        kept.run("verify", lambda: command([*program, "verify", str(bundle), "--json"], work))
    if "generate" in wanted:
        for policy in POLICIES:
            words = [*program, "generate", str(bundle), PROMPT, "--policy", policy, "--seed", "0", "--json"]
            words += ["--overwrite", "--output", str(work / f"generate-{policy}.png")]
            kept.run(f"generate {policy}", lambda words=words: command(words, work))
    for step in ("draw", "logits"):
        if step in wanted:
            for policy in POLICIES:
                kept.run(f"{step} {policy}", lambda at=f"{step}:{policy}": command([*again, at], work))
    if "bench" in wanted:
        # Eager PyTorch beside the engines takes both their memory.
        words = [*program, "bench", str(bundle), "--no-eager", "--share-engines", "--policy", "ld", "--prompt", PROMPT]
        words += ["--repeats", "1", "--warmup", "0", "--output", str(work / "bench.json"), "--overwrite"]
        kept.run("bench", lambda: command(words, work) | {"result": json.loads((work / "bench.json").read_text())})

    from ldp_export.bench.hardware import hardware, software

    result = {"model": f"{model}, random weights", "size": size, "chunk": chunk, "build_options": build_options}
    result |= {"hardware": hardware(), "software": software(), "steps": kept.done}
    path = RESULTS / f"true-size-{name}-cpu.json"
    path.write_text(json.dumps(result, indent=1).replace(str(scratch), "SCRATCH") + "\n")
    click.echo(str(path))


if __name__ == "__main__":
    main()

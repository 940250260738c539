"""Whether a change keeps every picture: latents and traces of many requests, as hashes that two commits compare.

    python -m benchmarks.study.same_pictures BUNDLES --output before.json      on one commit
    python -m benchmarks.study.same_pictures BUNDLES --compare before.json     on the other, same machine and bundles

BUNDLES holds bundles that one commit built: `shapes` and `int8` (the embedded model), `2b`, `8b` and `torch` (the
golden Infinity checkpoints), `var` (the golden VAR). Those that are missing are left out and named. Requests are named
by their policy with every field, so that a renamed policy compares. Hashes of different processors do not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ldp_runtime import Pipeline, parse_policy
from ldp_runtime.pruning.parse import policy_text

#: Every policy that the study of `docs/results/ablation.md` compares, and the full model. None needs fitted numbers.
POLICIES = (
    "none",
    "ld",
    "ld-fast",
    "ld-paper",
    "ld-skip-2",
    "ld-paper:skip_last=1",
    "ld-paper:delta=none",
    "ld-paper:scales=",
    "ld-paper:border=ignored",
    "ld-paper:gap=l2",
    "ld-paper:energy_from=computed",
    "ld-paper:haar=latents",
    "ld-fast:fill=repeat",
    "ld-fast:then=conditional",
    "ld-fast:stop=none",
    "ld-fast:delta=0.25",
    "ld-fast:p=0.9",
    "ld-fast:p=0.7",
    "ld-fast:p=0.9,delta=0.25",
    "ld:rho=0.9",
    "ld:rho=0.8",
    "ld:rho=0.7",
    "ld-fast:score=variance",
    "ld-fast:detail=0.45",
    "ld-fast:delta=9,stop_scales=3+4",
    "none:skip_last=1",
    "none:skip_last=2",
    "none:stop=3",
    "none:stop=4",
    "none:stop=4,skip_last=1",
    "none:stop=3,skip_last=2",
    "top-k",
    "top-k:fill=zero",
    "top-k:score=distance,fill=zero",
    "top-k:score=random,fill=zero",
    "top-k:share=0.6,score=distance,fill=zero,stop=4",
    "top-k:score=random,fill=zero,scales=6,stop=4",
    "top-k:share=0.5+0.4,score=random,fill=zero,stop=4",
    "top-k:share=0.5+0,score=random,fill=zero,skip_last=1",
)
#: Those that say something of other models and engines.
FEW = ("none", "ld-fast", "ld-paper", "ld-skip-2", "none:stop=4,skip_last=1", "top-k:score=random,fill=zero")


@dataclass(frozen=True)
class Request:
    """One call of a bundle's pipeline.

    Attributes:
        bundle: name of its folder; options: arguments of the call.
        texts: lengths of random text features, for models without a text encoder.
        stop_at: the callback stops the run after this scale; preview_at: it decodes a preview there.
    """

    bundle: str
    options: dict[str, Any]
    texts: tuple[int, ...] = ()
    stop_at: int | None = None
    preview_at: int | None = None

    @property
    def name(self) -> str:
        options = dict(self.options)
        if "policy" in options:  # written out, so that no name or default can change its meaning
            options["policy"] = policy_text(parse_policy(options["policy"]))
        special = {"texts": self.texts, "stop_at": self.stop_at, "preview_at": self.preview_at}
        return f"{self.bundle} {json.dumps(options | {k: v for k, v in special.items() if v not in ((), None)})}"


def requests() -> Iterator[Request]:
    """All requests, bundle by bundle."""
    two = ["a red circle", "three green squares"]
    for policy in POLICIES:
        yield Request("shapes", {"prompt": two[0], "seed": 1, "policy": policy})
    for policy in ("none", "ld-fast", "ld-paper", "top-k:share=0.5+0.4,score=random,fill=zero,stop=4"):
        yield Request("shapes", {"prompt": two, "seed": [7, 2**40], "policy": policy})
        yield Request("shapes", {"prompt": two[1], "seed": 3, "policy": policy, "aspect_ratio": 0.5})
    yield Request("shapes", {"prompt": two, "seed": 5, "num_images_per_prompt": 3, "policy": "ld-fast"})
    yield Request("shapes", {"prompt": two[0], "seed": 6, "aspect_ratio": 2.0, "temperature": 0.7})
    yield Request("shapes", {"prompt": two, "negative_prompt": "a blue star", "seed": 8, "policy": "ld-fast"})
    yield Request("shapes", {"prompt": two, "negative_prompt": ["a blue star", "a ring"], "seed": 9})
    yield Request("shapes", {"prompt": two[0], "guidance_scale": 1.0, "seed": 10, "policy": "ld-paper"})
    yield Request("shapes", {"prompt": two[0], "guidance_scale": [4, 4, 3, 3, 2, 1, 1], "seed": 11})
    yield Request("shapes", {"prompt": two[0], "top_k": 1, "seed": 12})
    yield Request("shapes", {"prompt": two[0], "top_p": 0.0, "top_k": 0, "seed": 13})
    for policy in ("none", "ld-fast"):
        yield Request("shapes", {"prompt": two, "seed": 14, "policy": policy}, stop_at=4)
        yield Request("shapes", {"prompt": two, "seed": 15, "policy": policy}, preview_at=3)
    for policy in FEW:
        yield Request("int8", {"prompt": two, "seed": 16, "policy": policy})
        yield Request("2b", {"seed": 17, "policy": policy}, texts=(9, 4))
        yield Request("8b", {"seed": 18, "policy": policy}, texts=(5,))
        yield Request("torch", {"seed": 19, "policy": policy}, texts=(7, 3))
        yield Request("var", {"class_labels": [3, 0], "seed": 20, "policy": policy})
    yield Request("8b", {"seed": 21, "policy": "ld-paper:haar=latents", "aspect_ratio": 2.0}, texts=(5, 8))
    yield Request("var", {"class_labels": [1], "seed": 22, "more_smooth": True})
    yield Request("var", {"class_labels": 2, "seed": 23, "guidance_scale": 0.0, "top_k": 50, "policy": "ld-fast"})
    yield Request("var", {"class_labels": [2, 1, 0], "seed": 24, "policy": "ld-fast"}, preview_at=2)
    yield Request("var", {"class_labels": [2, 1], "seed": 25}, stop_at=5)


def digest(tensor: torch.Tensor) -> str:
    raw = tensor.detach().cpu().contiguous()
    return hashlib.sha256(f"{raw.dtype} {tuple(raw.shape)}".encode() + raw.numpy().tobytes()).hexdigest()[:24]


@dataclass
class Recorder:
    """The callback of one request: hashes every scale as it passes."""

    request: Request
    seen: list[Any] = field(default_factory=list)

    def __call__(self, event: Any) -> bool:
        scale = [event.scale, event.scales, list(event.images), [digest(t) for t in (*event.latents, *event.residuals)]]
        if event.scale == self.request.preview_at:
            scale.append(hashlib.sha256(event.preview().tobytes()).hexdigest()[:24])
        self.seen.append(scale)
        return event.scale != self.request.stop_at


def without_times(trace: dict[str, Any]) -> dict[str, Any]:
    scales = [{k: v for k, v in scale.items() if not k.endswith("_s")} for scale in trace["scales"]]
    return {k: v for k, v in trace.items() if not k.endswith("_s") and k != "policy"} | {"scales": scales}


def draw(pipe: Pipeline, request: Request) -> dict[str, Any]:
    """What a request gave: hashes of each scale, of latents and pixels, and the trace; or the error's name."""
    options = dict(request.options)
    if request.texts:
        generator = torch.Generator().manual_seed(sum(request.texts))
        channels = pipe.manifest.model.text_channels
        options["prompt_embeds"] = [torch.randn(length, channels, generator=generator) for length in request.texts]
    recorder, found = Recorder(request), {}
    try:
        result = pipe(**options, output_type="latent", callback_on_scale=recorder)
        found["latents"] = [digest(latent) for latent in result.images]
        found["pixels"] = digest(pipe.decode(result.images[:1], output_type="torch"))
        found["traces"] = [without_times(trace.to_json()) for trace in result.traces]
    except Exception as error:  # a request that is refused must be refused in the same words
        found["error"] = f"{type(error).__name__}: {error}"
    return found | {"scales": recorder.seen}


def record(bundles: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Every request's outcome, by name."""
    found: dict[str, Any] = {}
    wanted = list(requests())
    for name in dict.fromkeys(request.bundle for request in wanted):
        if not (bundles / name).exists():
            say(f"left out: {bundles / name} is not there")
            continue
        with Pipeline.load(bundles / name, threads=1) as pipe:
            for request in (r for r in wanted if r.bundle == name):
                found[request.name] = draw(pipe, request)
                say(request.name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path)
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument("--output", type=Path, help="Where to write the hashes.")
    goal.add_argument("--compare", type=Path, help="Hashes of the other commit.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    before = json.loads(options.compare.read_text()) if options.compare else None
    now = json.loads(json.dumps(record(options.bundles, lambda words: print(words, flush=True))))
    if before is None:
        options.output.write_text(json.dumps(now, indent=1))
        print(f"{len(now)} requests, {sum('error' in found for found in now.values())} of them ended by an error")
        return
    differing = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    for name in sorted(differing):
        parts = [part for part in (*before.get(name, {}), *now.get(name, {}))]
        print(
            "differs:",
            name,
            [p for p in dict.fromkeys(parts) if before.get(name, {}).get(p) != now.get(name, {}).get(p)],
        )
    print(f"{len(now)} requests, {len(differing)} differ")
    raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()

"""Converting a checkpoint of true size with random weights: memory and time of writing, converting and reading back.

    python -m benchmarks.study.conversion --model infinity-2b --folder /tmp/2b --output 2b.json

Writes the model's transformer in the released layout (float32; shards with an index where larger than 4 GiB), converts
it as `ldp-export convert` does, and compares a few tensors. Peak anonymous memory is read from /proc.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from benchmarks.paths import new_folder, result_file  # beside this file
from benchmarks.study.peak import measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="infinity-2b", help="a registry name")
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--folder", type=new_folder, required=True, help="a new folder: 1.5 times the checkpoint")
    parser.add_argument("--output", type=result_file, help="write the figures as JSON")
    args = parser.parse_args()
    try:
        figures = prove(args.model, args.precision, args.folder)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    print(json.dumps(figures, indent=1))
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")


def prove(model: str, precision: str, folder: Path) -> dict[str, object]:
    written, converted = folder / "float32", folder / precision
    figures: dict[str, object] = {"model": model, "precision": precision, "weights": "random"}
    figures["write"] = measured(f"""
from ldp_export.models.registry import find_model
from ldp_export.checkpoints.synthetic import write_checkpoint
write_checkpoint(find_model({model!r}), Path({str(written)!r}))
""")
    source = next(path for path in sorted(written.iterdir()) if path.name.startswith("transformer"))
    figures["convert"] = measured(f"""
from ldp_export.checkpoints.convert import convert, plan_conversion
convert(plan_conversion(Path({str(source)!r}), Path({str(converted)!r}), {precision!r}))
""")
    figures["compare"] = measured(f"""
from ldp_export.checkpoints.files.tensors import read_state
before, after = read_state({str(source)!r}), read_state({str(converted)!r})
assert before.keys() == after.keys()
for name in list(before)[::40]:
    assert torch.equal(before[name].to(after[name].dtype), after[name]), name
""")
    figures["bytes"] = {path.name: _bytes(path) for path in (source, converted)}
    return figures


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else list(path.iterdir())
    return sum(file.stat().st_size for file in files)


if __name__ == "__main__":
    main()

"""The flan-t5-xl encoder at true size with random weights: export, one prompt in ONNX Runtime, memory and time.

    python -m benchmarks.study.text_encoder --folder /tmp/t5 --output t5.json

Writes a checkpoint in the released layout (24 layers, width 2048, 32 heads, gated feed-forward of 5120, vocabulary
32128), exports the graph from the mapped files, runs it on a prompt and compares it with `transformers` on the same
weights. Peak anonymous memory is read from /proc while each step runs. Random weights: nothing about pictures.
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
    parser.add_argument("--folder", type=new_folder, required=True, help="a new folder for about 10 GB; is deleted")
    parser.add_argument("--output", type=result_file, help="write the figures as JSON")
    parser.add_argument("--tokens", type=int, default=32, help="length of the prompt")
    parser.add_argument("--decoder", action="store_true", help="write the decoder too, as released (6.5 GB more)")
    args = parser.parse_args()
    try:
        figures = prove(args.folder, args.tokens, args.decoder)
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    print(json.dumps(figures, indent=1))
    if args.output:
        args.output.write_text(json.dumps(figures, indent=1) + "\n")


def prove(folder: Path, tokens: int, decoder: bool) -> dict[str, object]:
    """Each step in a process of its own, so that its peak is its own."""
    checkpoint, graph = folder / "flan-t5-xl", folder / "graph"
    folder.mkdir(parents=True)
    ids = f"torch.randint(3, 64, (1, {tokens}), generator=torch.Generator().manual_seed(0))"
    steps = {
        "write": f"""
from ldp_export.checkpoints.synthetic_t5 import write_t5
from ldp_export.models.t5 import FLAN_T5_XL
write_t5(FLAN_T5_XL, Path({str(checkpoint)!r}), decoder={decoder})
""",
        "export": f"""
from ldp_export.graphs.onnx import export_graph
from ldp_export.graphs.t5 import T5EncoderGraph
from ldp_export.checkpoints.t5 import load_text_encoder
module = load_text_encoder(Path({str(checkpoint)!r})).module
export_graph(T5EncoderGraph(module), Path({str(graph)!r}))
""",
        "run": f"""
import onnxruntime
session = onnxruntime.InferenceSession({str(graph / "model.onnx")!r}, providers=["CPUExecutionProvider"])
import numpy
numpy.save({str(folder / "features.npy")!r}, session.run(None, {{"ids": {ids}.numpy()}})[0])
""",
        "transformers": f"""
from transformers import T5EncoderModel
import numpy
model = T5EncoderModel.from_pretrained({str(checkpoint)!r}, dtype=torch.float32).eval()
with torch.no_grad():
    numpy.save({str(folder / "expected.npy")!r}, model(input_ids={ids}).last_hidden_state.numpy())
""",
    }
    figures: dict[str, object] = {name: measured(code) for name, code in steps.items()}
    import numpy as np

    got, expected = np.load(folder / "features.npy"), np.load(folder / "expected.npy")
    sizes = {path.parent.name: 0 for path in folder.glob("*/*")}
    for path in folder.glob("*/*"):
        sizes[path.parent.name] += path.stat().st_size
    return figures | {
        "tokens": tokens,
        "weights": "random",
        "largest_difference": float(np.abs(got - expected).max()),
        "largest_feature": float(np.abs(expected).max()),
        "bytes": sizes,
    }


if __name__ == "__main__":
    main()

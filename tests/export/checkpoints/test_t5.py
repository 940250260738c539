"""The T5 encoder: the original's rules for tokens and masks, parity with `transformers`, and the range of float16."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ldp_runtime.tokenizer import PromptTokenizer

from ldp_export.checkpoints.files.tensors import read_state, save_state
from ldp_export.checkpoints.synthetic_t5 import write_t5
from ldp_export.checkpoints.t5 import load_text_encoder
from ldp_export.graphs.graph import convert_weights
from ldp_export.graphs.onnx import export_graph
from ldp_export.graphs.signature import MODEL_FILE
from ldp_export.graphs.t5 import T5EncoderGraph
from ldp_export.models.t5 import T5Sizes

#: flan-t5-xl's architecture, small: gated GELU, 32 relative buckets up to distance 128.
SIZES = T5Sizes(layers=2, width=64, heads=4, head_dim=16, ffn=160, vocabulary=80)
MAX_TOKENS = 512


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5(SIZES, tmp_path_factory.mktemp("t5") / "flan", shard_bytes=300_000)


@pytest.fixture(scope="module")
def original(checkpoint: Path) -> Any:
    """As the original code loads it, in float32."""
    from transformers import T5EncoderModel

    model: Any = T5EncoderModel.from_pretrained(checkpoint, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def original_tokenizer(checkpoint: Path) -> Any:
    """The tokenizer of `transformers` that the original code uses, on the same file."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(checkpoint / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def original_ids(tokenizer: Any, prompt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded to 512 and truncated, with the mask, as the original calls it."""
    made = tokenizer(text=[prompt], max_length=MAX_TOKENS, padding="max_length", truncation=True, return_tensors="pt")
    return made["input_ids"], made["attention_mask"]


PROMPTS = ("a", "a red circle", "A Photo, 50-50.", "two  spaces and a trailing one ", "colour é ü 漢", "word " * 300)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_token_ids_are_the_originals(checkpoint: Path, original_tokenizer: Any, prompt: str) -> None:
    ids, mask = original_ids(original_tokenizer, prompt)
    ours = PromptTokenizer(checkpoint / "tokenizer.json", MAX_TOKENS)(prompt)
    assert ours.tolist() == ids[0, : int(mask.sum())].tolist()


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ids = PromptTokenizer(checkpoint / "tokenizer.json", MAX_TOKENS)("word " * 300)
    assert len(ids) == MAX_TOKENS
    assert ids[-1] == 1
    assert "the model reads the first 512" in caplog.text


def test_every_shape_of_the_released_layout(checkpoint: Path) -> None:
    """The names and numbers of a whole T5, of which the index names every shard."""
    state = read_state(checkpoint)
    assert sum(tensor.numel() for tensor in state.values()) == SIZES.parameters
    assert len(list(checkpoint.glob("*-of-*.safetensors"))) > 2
    encoder = {k: v for k, v in state.items() if k.startswith(("encoder.", "shared."))}
    assert sum(tensor.numel() for tensor in encoder.values()) == SIZES.encoder_parameters


@pytest.mark.parametrize("prompt", PROMPTS)
def test_features_without_padding_are_those_of_the_padded_original(
    checkpoint: Path, original: Any, original_tokenizer: Any, prompt: str, engine: Any
) -> None:
    """Running at the prompt's own length is what masking the padding means: padded rows reach no other."""
    ids, mask = original_ids(original_tokenizer, prompt)
    with torch.no_grad():
        expected = original(input_ids=ids, attention_mask=mask).last_hidden_state[0, : int(mask.sum())]
        ours = PromptTokenizer(checkpoint / "tokenizer.json", MAX_TOKENS)(prompt)
        reference = load_text_encoder(checkpoint).module(input_ids=ours[None]).last_hidden_state[0]
    (features,) = engine.run(None, {"ids": ours[None].numpy()})
    assert float((reference - expected).abs().max()) < 2e-5 * float(expected.abs().max())
    assert np.abs(features[0] - expected.numpy()).max() < 2e-5 * float(expected.abs().max())


@pytest.fixture(scope="module")
def engine(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The exported graph in ONNX Runtime."""
    import onnxruntime

    folder = tmp_path_factory.mktemp("graph")
    export_graph(T5EncoderGraph(load_text_encoder(checkpoint).module), folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / MODEL_FILE, options, providers=["CPUExecutionProvider"])


class TestRangeOfFloat16:
    """T5s are known for a residual stream that leaves float16; here one feed-forward is scaled up until it does."""

    @pytest.fixture(scope="class")
    @classmethod
    def hot(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        folder = write_t5(SIZES, tmp_path_factory.mktemp("hot") / "t5", decoder=False, shard_bytes=2**30)
        state = read_state(folder)
        wo = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
        scaled = {name: value * 1e6 if name == wo else value.clone() for name, value in state.items()}
        for file in folder.glob("*.safetensors"):
            file.unlink()
        (folder / "model.safetensors.index.json").unlink()
        save_state(scaled, folder / "model.safetensors")
        return folder

    @pytest.fixture(scope="class")
    @classmethod
    def ids(cls) -> torch.Tensor:
        return torch.randint(3, SIZES.vocabulary, (1, 40), generator=torch.Generator().manual_seed(0))

    @pytest.fixture(scope="class")
    @classmethod
    def exact(cls, hot: Path, ids: torch.Tensor) -> torch.Tensor:
        module = load_text_encoder(hot).module
        largest = 0.0

        def note(_: object, __: object, output: torch.Tensor) -> None:
            nonlocal largest
            largest = max(largest, float(output.abs().max()))

        handle = module.get_submodule("encoder.block.1.layer.1.DenseReluDense.wo").register_forward_hook(note)
        with torch.no_grad():
            features = module(input_ids=ids).last_hidden_state
        handle.remove()
        assert largest > torch.finfo(torch.float16).max, "the case is one that overflows"
        return features

    @torch.no_grad()
    def test_plain_float16_overflows(self, hot: Path, ids: torch.Tensor, exact: torch.Tensor) -> None:
        half = load_text_encoder(hot).module.half()
        assert not bool(half(input_ids=ids).last_hidden_state.isfinite().all())

    @pytest.mark.parametrize(("precision", "allowed"), [("float16", 0.01), ("bfloat16", 0.05)])
    @torch.no_grad()
    def test_our_graphs_do_not(
        self, hot: Path, ids: torch.Tensor, exact: torch.Tensor, precision: Any, allowed: float
    ) -> None:
        graph = T5EncoderGraph(load_text_encoder(hot).module, precision)
        convert_weights(graph)
        features = graph(ids)
        assert bool(features.isfinite().all())
        assert float((features - exact).norm() / exact.norm()) < allowed

    def test_the_float16_graph_in_onnxruntime(
        self, hot: Path, ids: torch.Tensor, exact: torch.Tensor, tmp_path: Path
    ) -> None:
        import onnxruntime

        export_graph(T5EncoderGraph(load_text_encoder(hot).module, "float16"), tmp_path)
        session = onnxruntime.InferenceSession(tmp_path / MODEL_FILE, providers=["CPUExecutionProvider"])
        features = torch.from_numpy(session.run(None, {"ids": ids.numpy()})[0])
        assert bool(features.isfinite().all())
        assert float((features - exact).norm() / exact.norm()) < 0.01

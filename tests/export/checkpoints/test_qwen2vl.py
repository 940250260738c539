"""HART's text encoder: parity with transformers, tokenizer rules, and an instruction that must be the known one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.hart_samples import INSTRUCTION, known_instruction, write_qwen2
from ldp_runtime.errors import CheckpointError
from tokenizers import Tokenizer

from ldp_export.checkpoints import qwen2vl
from ldp_export.checkpoints.convert import convert, plan_conversion
from ldp_export.checkpoints.qwen2vl import check_qwen2_folder, load_qwen2, read_instruction
from ldp_export.graphs.qwen2vl import Qwen2TextGraph
from ldp_export.models.qwen2vl import Qwen2Text
from ldp_export.models.registry import find_model
from ldp_export.models.sizes import Qwen2Sizes

ROWS = 12


@pytest.fixture(params=["left", "right"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write_qwen2(tmp_path / "qwen2", side=request.param)


def is_left(folder: Path) -> bool:
    return json.loads((folder / "tokenizer_config.json").read_text())["padding_side"] == "left"


@torch.no_grad()
def test_features_are_those_of_transformers(folder: Path, tmp_path: Path) -> None:
    """Behind the instruction, with padding hidden as a key and kept as a row; positions count all rows."""
    from transformers import Qwen2Model

    with known_instruction():
        encoder = load_qwen2(folder, ROWS)
    ids = encoder.ids("a cat", tmp_path / "tokenizer.json")
    before = torch.tensor(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(INSTRUCTION).ids)
    mask = torch.cat((torch.ones_like(before), (ids != encoder.padding).long()))
    model = Qwen2Model.from_pretrained(folder, attn_implementation="eager").eval()
    expected = model(input_ids=torch.cat((before, ids))[None], attention_mask=mask[None]).last_hidden_state
    features = encoder.features(ids)
    torch.testing.assert_close(features[:, :-1], expected[0, len(before) :], atol=2e-5, rtol=0)
    spaces = [-1] * 7 + [0, 1, 2, 3, 4]
    assert features[:, -1].tolist() == (spaces if is_left(folder) else [0, 1, 2, 3, 4] + [4] * 7)


def test_texts_are_raw_padded_and_cut(folder: Path, tmp_path: Path) -> None:
    with known_instruction():
        encoder = load_qwen2(folder, ROWS)
    place = tmp_path / "tokenizer.json"
    short, long = encoder.ids("ab", place).tolist(), encoder.ids("abcdefghijklmnop", place).tolist()
    assert short == ([96] * 10 + [65, 66] if is_left(folder) else [65, 66] + [96] * 10)
    assert long == list(range(65, 65 + ROWS))
    assert encoder.ids("a<|pad|>b", place).tolist().count(encoder.padding) == ROWS - 2  # a spelt token is a hole


def test_converted_weights_keep_what_lies_beside_them(folder: Path, tmp_path: Path) -> None:
    target = convert(plan_conversion(folder, tmp_path / "converted", "float32"))
    with known_instruction():
        ours, theirs = (load_qwen2(place, ROWS) for place in (target, folder))
    ids = theirs.ids("a cat", tmp_path / "tokenizer.json")
    assert torch.equal(ours.features(ids), theirs.features(ids))


def test_sizes_of_the_released_stack() -> None:
    sizes = find_model("hart-0.7b").text_encoder
    assert isinstance(sizes, Qwen2Sizes)
    with torch.device("meta"):
        weights = {name: p.numel() for name, p in Qwen2Text(sizes).named_parameters()}
    assert sum(weights.values()) == sizes.encoder_parameters
    assert sum(n for name, n in weights.items() if Qwen2TextGraph.ISLANDS.match(name)) == sizes.encoder_islands


class TestInstruction:
    def test_another_text_is_refused(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="36 characters"):
            check_qwen2_folder(folder)

    def test_its_file_is_data(self, tmp_path: Path) -> None:
        """Nothing in it runs, and only a literal text counts."""
        touched = tmp_path / "touched"
        for line in (f"open({str(touched)!r}, 'w')", "llm_system_prompt = str(1)", "def broken(", "x = 1"):
            path = tmp_path / "constants.py"
            path.write_text(line + "\n")
            with pytest.raises(CheckpointError):
                read_instruction(path)
        assert not touched.exists()

    def test_what_is_known_of_the_originals(self) -> None:
        assert qwen2vl.INSTRUCTION_LENGTH == 705
        assert qwen2vl.INSTRUCTION_SHA256.startswith("424f7aa7b1119f8e")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"model_type": "t5"}', "expected 'qwen2'"),
        ("config.json", "[]", "no configuration"),
        ("config.json", '{"model_type": "qwen2", "hidden_size": -1}', "expected a whole number"),
        ("tokenizer_config.json", "{}", "one is unknown"),
        ("tokenizer_config.json", '{"pad_token": "<|pad|>", "padding_side": "up"}', "one is unknown"),
        ("tokenizer.json", "{}", "no tokenizer"),
        ("constants.py", None, "lacks constants.py"),
    ],
)
def test_damaged_folders_are_refused(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    folder = write_qwen2(tmp_path / "qwen2")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with known_instruction(), pytest.raises(CheckpointError, match=message):
        check_qwen2_folder(folder)

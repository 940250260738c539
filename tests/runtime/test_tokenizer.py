"""Prompts to token ids."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from helpers.samples import WORDS, write_text_encoder
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.tokenizer import PromptTokenizer
from tokenizers import Tokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_encoder(tmp_path_factory.mktemp("encoder"), 32) / "tokenizer.json"


def test_ends_with_the_end_of_text(file: Path) -> None:
    assert PromptTokenizer(file, 16)("a red circle").tolist() == [3, 5, 8, 1]
    assert PromptTokenizer(file, 16)("a purple circle").tolist() == [3, 2, 8, 1]  # unknown words have their own id


@pytest.mark.parametrize("quotes", [True, False])
def test_words_that_are_not_known(file: Path, caplog: pytest.LogCaptureFixture, quotes: bool) -> None:
    """Where the log may not quote a prompt, it counts."""
    with caplog.at_level(logging.INFO):
        PromptTokenizer(file, 16, quotes)("a purple circle on a xyzzy")
    (record,) = caplog.records
    assert record.levelno == (logging.WARNING if quotes else logging.INFO)
    quoted = "'purple', 'xyzzy' of 'a purple circle on a xyzzy'"
    assert (quoted if quotes else "2 words of a prompt") in record.getMessage()
    assert ("xyzzy" in record.getMessage()) is quotes


def test_tokenizer_file_that_does_not_end_texts(file: Path, tmp_path: Path) -> None:
    """The saved file's own padding, truncation and lack of </s> do not matter."""
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.post_processor = None  # type: ignore[assignment]
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert PromptTokenizer(tmp_path / "tokenizer.json", 16)("a red circle").tolist() == [3, 5, 8, 1]


@pytest.mark.parametrize("words", [14, 15, 16, 40])
def test_length(file: Path, words: int) -> None:
    ids = PromptTokenizer(file, 16)(" ".join(["red"] * words)).tolist()
    assert len(ids) == min(words + 1, 16)
    assert ids[-1] == 1
    assert set(ids[:-1]) == {3 + WORDS.index("red")}


@pytest.mark.parametrize("prompt", ["", " ", "\n\t"])
def test_empty(file: Path, prompt: str) -> None:
    with pytest.raises(ConfigError, match="empty"):
        PromptTokenizer(file, 16)(prompt)


def test_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(IntegrityError, match="cannot read the tokenizer"):
        PromptTokenizer(tmp_path / "tokenizer.json", 16)

"""Tokens of texts: cleaning, cutting, filling up, and vocabularies that are damaged. CLIP's is a small one of ours."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from helpers.evaluation_networks import words_file
from ldp_calibration.evaluation.networks.tokens import bert_tokens, clean, clip_tokens
from ldp_runtime.errors import ConfigError, IntegrityError


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a\n\t red   cat ", "a red cat"),
        ("caf&amp;eacute;", "café"),
        ("cafÃ© â€” a", "café — a"),
        ("&lt;b&gt;", "<b>"),
        ("", ""),
    ],
)
def test_texts_are_cleaned(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_texts_are_joined_cut_and_filled_up(tmp_path: Path) -> None:
    tokens = clip_tokens(words_file(tmp_path))
    found = tokens(["a red cat", "RED", "", "cat " * 100])
    assert found.shape == (4, 77)
    start, end = found[2, 0].item(), found[2, 1].item()
    assert (start, end) == (512 + 5, 512 + 6)
    assert found[2, 2:].tolist() == [0] * 75
    assert found[0, :5].tolist() == [start, 256 + ord("a") - ord("!"), 512 + 1, 512 + 4, end]
    assert found[1, :3].tolist() == [start, 512 + 1, end]
    assert found[3, 0] == start
    assert found[3, 1:76].tolist() == [512 + 4] * 75
    assert found[3, 76] == end


def test_vocabularies_that_are_damaged(tmp_path: Path) -> None:
    file = tmp_path / "words.txt.gz"
    with pytest.raises(ConfigError, match="CLIP's vocabulary is not there"):
        clip_tokens(file)
    whole = gzip.compress(b"# version\nr e\n")
    for content in (
        b"",
        b"text",
        whole[:-9],
        gzip.compress(b"# version\none two three\n"),
        gzip.compress("#\n一 x\n".encode()),
        gzip.compress(b""),
    ):
        file.write_bytes(content)
        with pytest.raises(IntegrityError, match="is no vocabulary of CLIP"):
            clip_tokens(file)
    words = tmp_path / "vocab.txt"
    with pytest.raises(ConfigError, match="BERT's vocabulary is not there"):
        bert_tokens(words)
    for content in (b"", b"[PAD]\n[UNK]\n", b"\xff\xfe"):
        words.write_bytes(content)
        with pytest.raises(IntegrityError, match="is no vocabulary of BERT"):
            bert_tokens(words)

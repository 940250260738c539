"""Tokens of texts: cleaning, cutting, filling up, and vocabularies that are damaged. CLIP's is a small one of ours."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from helpers.evaluation_networks import words_file
from ldp_calibration.evaluation.networks.tokens import bert_tokens, byte_letters, clean, clip_tokens
from ldp_runtime.errors import ConfigError, IntegrityError


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  a\n\t red   cat ", "a red cat"),
        ("A \u3000Red\u2028Cat", "a red cat"),
        ("ΣΟΦΟΣ", "σοφος"),  # the last sigma is another letter
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


def test_what_is_a_word(tmp_path: Path) -> None:
    """Numbers of bytes, taken apart as the original's pattern does; names of special tokens are text like any other."""
    (found,) = clip_tokens(words_file(tmp_path))(["cat's 12<|endoftext|>é'LL"])
    end = 512 + 6
    ids = found[1 : found.tolist().index(end)].tolist()
    ends = [i for i in ids if 256 <= i < 512 or i == 512 + 4]
    letters = {256 + i: letter for i, letter in enumerate(byte_letters())} | {512 + 4: "cat"}
    assert [letters[i] for i in ends] == ["cat", "s", "1", "2", "|", "t", ">", "©", "l"]


def test_words_are_lines_whatever_else_may_end_one(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2028", "\x85", "cat"]
    (tmp_path / "vocab.txt").write_bytes("\r\n".join([*words, ""]).encode())
    ids, mask = bert_tokens(tmp_path / "vocab.txt")(["a Cat"])
    assert ids[0, :5].tolist() == [2, 1, 6, 3, 0]
    assert mask[0, :5].tolist() == [1, 1, 1, 1, 0]


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

"""Tokens of CLIP's and BERT's texts, from their vocabularies, which are not part of this package."""

from __future__ import annotations

import gzip
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ldp_runtime.errors import ConfigError, IntegrityError
from ldp_runtime.system.installation import install
from ldp_runtime.system.small_files import read_small, text_lines
from torch import Tensor

from ldp_calibration.evaluation.networks.clip import CONTEXT, END
from ldp_calibration.evaluation.networks.loading import transformers

#: Most bytes of a vocabulary that is unpacked, and of its file.
_MOST_BYTES = 16 * 2**20
#: Single bytes, and these at the end of a word.
_BYTES = 2 * 256
#: Endings after an apostrophe (a long s is one, too), words, single figures, and what lies between.
_WORDS = r"'[sſ]|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
#: Tokens of ImageReward's texts.
BERT_CONTEXT = 35


def clean(text: str) -> str:
    """Text as CLIP reads it: mojibake mended, entities resolved twice, white space collapsed, in lower case.

    Raises:
        ConfigError: ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise ConfigError("ftfy is not installed", hint=install("scorers")) from error
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split()).lower()


def clip_tokens(file: Path) -> Callable[[Sequence[str]], Tensor]:
    """Function that turns texts into CLIP's token numbers [B, 77]: cut with the end kept, filled up with zeros.

    Args:
        file: `bpe_simple_vocab_16e6.txt.gz`, as CLIP publishes it.

    Raises:
        ConfigError: it is missing, or a library is.
        IntegrityError: it is damaged.
    """
    clean("")  # refuses here if ftfy is missing
    tokenizer, start, end = _clip_tokenizer(file)

    def tokens(texts: Sequence[str]) -> Tensor:
        rows = torch.zeros(len(texts), CONTEXT, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = [start, *tokenizer.encode(clean(text)).ids[: CONTEXT - 2], end]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    return tokens


def _clip_tokenizer(file: Path) -> tuple[Any, int, int]:
    """Tokenizer of cleaned texts, and the numbers of start and end. Texts that spell these out are texts to it."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    merges = _merges(file)
    letters = byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocabulary = {word: i for i, word in enumerate(words)}
    try:
        tokenizer: Any = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    except Exception as error:  # the library raises what has no type of its own
        raise IntegrityError(f"{file} is no vocabulary of CLIP: {error}", hint="get the file anew") from error
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    in_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, in_bytes])
    return tokenizer, len(words), len(words) + 1


def _merges(file: Path) -> list[tuple[str, str]]:
    """Pairs that are joined, the first ones first; CLIP takes as many as its vocabulary has room for."""
    if not file.is_file():
        raise ConfigError(f"CLIP's vocabulary is not there: {file}", hint="ldp-export evaluate fetch gets it")
    try:
        with gzip.open(file) as stream:
            content = stream.read(_MOST_BYTES)
        lines = content.decode().split("\n")[1 : END + 1 - _BYTES - 2 + 1]
        pairs = [tuple(line.split()) for line in lines if line]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError("a line of it is no pair of tokens")
    except (OSError, EOFError, ValueError) as error:
        raise IntegrityError(f"{file} is no vocabulary of CLIP: {error}", hint="get the file anew") from error
    return [(first, second) for first, second in pairs]


def byte_letters() -> list[str]:
    """Letters that stand for bytes in CLIP's vocabulary: printable ones first, by themselves; the others after."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [*map(chr, printable), *(chr(256 + i) for i in range(len(others)))]


def bert_tokens(file: Path) -> Callable[[Sequence[str]], tuple[Tensor, Tensor]]:
    """Function that turns texts into BERT's token numbers and attention mask [B, 35] each: lower case, cut, filled up.

    Args:
        file: `vocab.txt` of bert-base-uncased.

    Raises:
        ConfigError: it is missing, or transformers is.
        IntegrityError: it is damaged.
    """
    library = transformers()
    if not file.is_file():
        raise ConfigError(f"BERT's vocabulary is not there: {file}", hint="ldp-export evaluate fetch gets it")
    try:
        words = text_lines(read_small(file, _MOST_BYTES))
        if missing := [word for word in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if word not in words]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{file} is no vocabulary of BERT: {error}", hint="get the file anew") from error
    tokenizer = library.BertTokenizer(vocab={word: i for i, word in enumerate(words)}, do_lower_case=True)

    def tokens(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        found = tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=BERT_CONTEXT, return_tensors="pt"
        )
        return found["input_ids"], found["attention_mask"]

    return tokens

"""Tokenizer: prompts to token ids, by the rules that the models were trained with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer

from ldp_runtime.errors import ConfigError, IntegrityError

logger = logging.getLogger(__name__)


#: T5 ends every text with </s>, also where its tokenizer does not say so.
END_OF_TEXT = 1
#: Token of whatever the vocabulary lacks.
_UNKNOWN = "<unk>"


class PromptTokenizer:
    """A `tokenizer.json` with its own cleaning of texts; a cut text keeps its end token, and none is padded.

    Args:
        quotes: the log may quote prompts: it warns of the words that the model does not know. Else it counts them.
        padded: texts have `max_tokens` rows, no end, and padding as the file says.
    """

    def __init__(self, path: Path, max_tokens: int, quotes: bool = True, padded: bool = False) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise IntegrityError(
                f"cannot read the tokenizer {path}: {error}", hint="copy the bundle again, or rebuild it"
            ) from error
        self._padding: dict[str, Any] | None = self._tokenizer.padding if padded else None
        if padded and self._padding is None:
            raise IntegrityError(f"the tokenizer {path} does not say how texts are padded", hint="rebuild the bundle")
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.max_tokens, self._quotes = max_tokens, quotes
        around = self._tokenizer.encode("").ids
        self._end = around[-1] if around else END_OF_TEXT

    def __call__(self, prompt: str) -> torch.Tensor:
        """Token ids [T] (int64); a prompt longer than the model reads is cut, as in the originals, with a warning.

        Raises:
            ConfigError: the prompt is empty.
        """
        if not prompt.strip():
            raise ConfigError("the prompt is empty", hint="describe the picture in a few words")
        encoded = self._tokenizer.encode(prompt, add_special_tokens=self._padding is None)
        if words := self._unknown_words(prompt, encoded):
            of = f"{', '.join(map(repr, words))} of {prompt!r}" if self._quotes else f"{len(words)} words of a prompt"
            level = logging.WARNING if self._quotes else logging.INFO
            logger.log(level, "the model does not know %s, and reads them as one unknown word", of)
        ids = self._ended(encoded.ids)
        if self._padding is not None:
            return torch.tensor(self._padded(ids, self._padding), dtype=torch.int64, device="cpu")
        if len(ids) > self.max_tokens:
            logger.warning("the prompt has %d tokens; the model reads the first %d", len(ids), self.max_tokens)
            ids = [*ids[: self.max_tokens - 1], self._end]
        return torch.tensor(ids, dtype=torch.int64, device="cpu")

    def ids(self, prompt: str) -> list[int]:
        """All token ids of a prompt, its end included; more than `max_tokens` are not cut here."""
        return self._ended(self._tokenizer.encode(prompt, add_special_tokens=self._padding is None).ids)

    def _unknown_words(self, prompt: str, encoded: Encoding) -> list[str]:
        """Words (or characters) that have no token of their own, each once."""
        unknown = self._tokenizer.token_to_id(_UNKNOWN)
        spans = [span for token, span in zip(encoded.ids, encoded.offsets, strict=True) if token == unknown]
        words = dict.fromkeys(prompt[start:end].strip() for start, end in spans)
        return [word for word in words if word]

    def _padded(self, ids: list[int], padding: dict[str, Any]) -> list[int]:
        if len(ids) > self.max_tokens:
            logger.warning("the prompt has %d tokens; the model reads the first %d", len(ids), self.max_tokens)
        ids = ids[: self.max_tokens]
        more = [int(padding["pad_id"])] * (self.max_tokens - len(ids))
        return [*more, *ids] if padding["direction"] == "left" else [*ids, *more]

    def _ended(self, ids: list[int]) -> list[int]:
        if self._padding is not None:  # such a text has no end token
            return ids
        return ids if ids and ids[-1] == self._end else [*ids, self._end]

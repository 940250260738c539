"""Tokenizer: prompts to token ids, by the rules that the models were trained with."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from tokenizers import Tokenizer

from ldp_runtime.errors import ConfigError, IntegrityError

logger = logging.getLogger(__name__)


#: T5 ends every text with </s>.
END_OF_TEXT = 1


class PromptTokenizer:
    """A `tokenizer.json` with T5's conventions: no cleaning of the text, </s> (id 1) at the end, no padding."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise IntegrityError(f"cannot read the tokenizer {path}: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.max_tokens = max_tokens

    def __call__(self, prompt: str) -> torch.Tensor:
        """Token ids [T] (int64); a prompt longer than the model reads is cut, as in the originals, with a warning.

        Raises:
            ConfigError: the prompt is empty.
        """
        if not prompt.strip():
            raise ConfigError("the prompt is empty", hint="describe the picture in a few words")
        ids = self.ids(prompt)
        if len(ids) > self.max_tokens:
            logger.warning("the prompt has %d tokens; the model reads the first %d", len(ids), self.max_tokens)
            ids = [*ids[: self.max_tokens - 1], END_OF_TEXT]
        return torch.tensor(ids, dtype=torch.int64, device="cpu")

    def ids(self, prompt: str) -> list[int]:
        """All token ids of a prompt, </s> included; more than `max_tokens` are not cut here."""
        ids = self._tokenizer.encode(prompt).ids
        return ids if ids and ids[-1] == END_OF_TEXT else [*ids, END_OF_TEXT]

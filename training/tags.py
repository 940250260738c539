"""What the words of a caption say about its nouns: which colour belongs to which, and how it stands to the other.

The text encoder tags its own noun tokens with these while it is trained. Pictures alone teach binding late: "a red
circle and a blue square" asks for one picture of four that hold the same words, and until the encoder tells them apart
the transformer has nothing to attend to.
"""

from collections.abc import Sequence

import torch
from ldp_calibration.shapes import COLOURS, KINDS
from ldp_calibration.shapes.captions import plural
from text import TEXT_CHANNELS
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

RELATIONS = {"left": 0, "right": 1, "above": 2, "over": 2, "below": 3, "under": 3}
INVERSE = (1, 0, 3, 2)
SINGULAR = (*KINDS, "disc", "box", "hoop")
NOUNS = frozenset((*SINGULAR, *map(plural, SINGULAR)))
NO_COLOUR, NO_RELATION = len(COLOURS), 4


def noun_tags(words: Sequence[str]) -> list[tuple[int, int, int]]:
    """For each noun its position, colour and relation to the other noun; the last class where none is given.

    >>> noun_tags("a red circle above a square".split())
    [(2, 0, 2), (5, 6, 3)]
    """
    nouns = [i for i, word in enumerate(words) if word in NOUNS]
    found = [RELATIONS[word] for word in words if word in RELATIONS]
    relations = [NO_RELATION] * len(nouns)
    if found and len(nouns) == 2:
        # "A above B" and "B with A above it" say the same.
        candidate = 1 if "with" in words else 0
        relations[candidate], relations[1 - candidate] = found[0], INVERSE[found[0]]
    names = list(COLOURS)
    colours = [names.index(words[i - 1]) if i and words[i - 1] in names else NO_COLOUR for i in nouns]
    return list(zip(nouns, colours, relations, strict=True))


def tags_of(tokenizer: Tokenizer, texts: Sequence[str]) -> torch.Tensor:
    """The tags of all nouns of these captions [N, 4]: row, position, colour, relation."""
    words = [encoding.tokens for encoding in tokenizer.encode_batch(list(texts))]
    return torch.tensor([(row, *tag) for row, each in enumerate(words) for tag in noun_tags(each)])


class Tagger(nn.Module):
    """Linear readout of a noun's token; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(TEXT_CHANNELS)
        self.head = nn.Linear(TEXT_CHANNELS, NO_COLOUR + 1 + NO_RELATION + 1)

    def loss(self, features: torch.Tensor, tags: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the nouns; `tags` [N, 4]: row, position, colour, relation."""
        logits = self.head(self.norm(features[tags[:, 0], tags[:, 1]]))
        colour, relation = logits.split((NO_COLOUR + 1, NO_RELATION + 1), dim=-1)
        return F.cross_entropy(colour, tags[:, 2]) + F.cross_entropy(relation, tags[:, 3])

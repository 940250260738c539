"""Words for scenes: free captions to train on, and structured prompts whose truth can be decided.

A `Prompt` holds its text and the claims that the text makes. One predicate (`holds`) therefore judges both a scene that
was drawn and an image in which the evaluator found shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from .scenes import COLOURS, GROUNDS, KINDS, RELATIONS, Background, Scene, Shape

CATEGORIES = ("single object", "two objects", "counting", "colours", "position", "colour attribution")

NUMBERS = {1: "one", 2: "two", 3: "three"}

_SYNONYMS = {"circle": ("circle", "disc"), "square": ("square", "box"), "ring": ("ring", "hoop")}
_PLURALS = {"box": "boxes"}
_SIZE_WORDS = {"small": ("small", "little"), "large": ("large", "big"), "medium": ("", "medium")}
_OPENINGS = ("", "", "", "a picture of ", "a drawing of ", "an image of ", "there is ", "we see ")
_RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


class Seen(Protocol):
    """Anything with a kind, a colour and a centre: a drawn `Shape` or one found in an image."""

    @property
    def kind(self) -> str: ...
    @property
    def colour(self) -> str: ...
    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...


@dataclass(frozen=True)
class Claim:
    """Claim that there is a shape of this kind; `colour` None leaves the colour open."""

    kind: str
    colour: str | None = None

    def fits(self, seen: Seen) -> bool:
        return seen.kind == self.kind and self.colour in (None, seen.colour)


@dataclass(frozen=True)
class Prompt:
    """A text of one category and its claims.

    With `count` there must be exactly that many shapes that fit the one claim, and none besides. With `relation` the
    first claim's shape must stand in this relation to the second's.
    """

    category: str
    text: str
    claims: tuple[Claim, ...]
    count: int | None = None
    relation: str | None = None


def holds(prompt: Prompt, shapes: Sequence[Seen]) -> bool:
    """True if the shapes make the prompt true. Further shapes do no harm, except to a count (as in GenEval)."""
    fitting = [[shape for shape in shapes if claim.fits(shape)] for claim in prompt.claims]
    if prompt.count is not None:
        return len(fitting[0]) == prompt.count == len(shapes)
    if len(prompt.claims) == 1:
        return bool(fitting[0])
    pairs = [(a, b) for a in fitting[0] for b in fitting[1] if a is not b]
    if prompt.relation is None:
        return bool(pairs)
    return any(related(a, b) == prompt.relation for a, b in pairs)


def related(a: Seen, b: Seen) -> str | None:
    """Relation of `a` to `b` along the axis in which they are further apart; None if they share a centre."""
    dx, dy = a.x - b.x, a.y - b.y
    if max(abs(dx), abs(dy)) < 0.05:
        return None
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def caption(scene: Scene, rng: np.random.Generator, coloured: float = 0.8) -> str:
    """A free caption: all that it says is true, but it may leave out colours, sizes, places and the background.

    `coloured` is the share of captions that name colours.
    """
    with_colours, with_sizes = rng.random() < coloured, rng.random() < 0.35
    shapes, relation = list(scene.shapes), None
    if _alike(scene):
        words = _counted(shapes, rng, with_colours, with_sizes)
    else:
        rng.shuffle(shapes)
        if len(shapes) == 2 and rng.random() < 0.6:
            relation = related(shapes[0], shapes[1])
        words = _listed([_described(shape, rng, with_colours, with_sizes) for shape in shapes], relation, rng)
    opening = _pick(rng, _OPENINGS)
    if opening == "there is " and _alike(scene):
        opening = "there are "
    ground = f" {_ground_words(scene.background, rng)}" if rng.random() < 0.4 else ""
    return f"{opening}{words}{ground}"


def sample_prompt(category: str, rng: np.random.Generator) -> Prompt:
    """A random prompt of one of CATEGORIES."""
    kinds = [str(kind) for kind in rng.choice(list(KINDS), size=2, replace=False)]
    colours = [str(colour) for colour in rng.choice(list(COLOURS), size=2, replace=False)]
    first, second = (Claim(kind, colour) for kind, colour in zip(kinds, colours, strict=True))
    if category == "single object":
        return Prompt(category, f"a {first.kind}", (Claim(first.kind),))
    if category == "two objects":
        return Prompt(category, f"a {first.kind} and a {second.kind}", (Claim(first.kind), Claim(second.kind)))
    if category == "counting":
        count = int(rng.integers(1, 4))
        noun = first.kind if count == 1 else plural(first.kind)
        return Prompt(category, f"{NUMBERS[count]} {first.colour} {noun}", (first,), count=count)
    if category == "colours":
        return Prompt(category, f"{article(first.colour or '')} {first.kind}", (first,))
    if category == "position":
        relation = _pick(rng, RELATIONS)
        text = f"a {first.kind} {_RELATION_WORDS[relation][0]} a {second.kind}"
        return Prompt(category, text, (Claim(first.kind), Claim(second.kind)), relation=relation)
    if category == "colour attribution":
        text = f"{article(first.colour or '')} {first.kind} and {article(second.colour or '')} {second.kind}"
        return Prompt(category, text, (first, second))
    raise ValueError(f"category {category!r} is unknown; the categories are {', '.join(CATEGORIES)}")


def framed(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    """The prompt within a sentence, as captions are: "a picture of a circle", "we see a star on a grey background".

    Claims say nothing of the background, and four in ten prompts name one.
    """
    opening = _pick(rng, [words for words in _OPENINGS if words])
    if opening == "there is " and (prompt.count or 1) > 1:
        opening = "there are "
    plain = Background("plain", _pick(rng, list(GROUNDS)), "")
    ground = f" {_ground_words(plain, rng)}" if rng.random() < 0.4 else ""
    return replace(prompt, text=f"{opening}{prompt.text}{ground}")


def prompts_of(scene: Scene) -> list[Prompt]:
    """One true prompt for each category that the scene can illustrate."""
    shapes = scene.shapes
    claims = tuple(Claim(shape.kind, shape.colour) for shape in shapes[:2])
    bare = tuple(Claim(shape.kind) for shape in shapes[:2])
    prompts = [
        Prompt("single object", f"a {bare[0].kind}", bare[:1]),
        Prompt("colours", f"{article(shapes[0].colour)} {shapes[0].kind}", claims[:1]),
    ]
    if _alike(scene) or len(shapes) == 1:
        noun = shapes[0].kind if len(shapes) == 1 else plural(shapes[0].kind)
        text = f"{NUMBERS[len(shapes)]} {shapes[0].colour} {noun}"
        return [*prompts, Prompt("counting", text, claims[:1], count=len(shapes))]
    relation = related(shapes[0], shapes[1])
    texts = [f"{article(shape.colour)} {shape.kind}" for shape in shapes[:2]]
    return [
        *prompts,
        Prompt("two objects", f"a {bare[0].kind} and a {bare[1].kind}", bare),
        Prompt("position", f"a {bare[0].kind} {relation} a {bare[1].kind}", bare, relation=relation),
        Prompt("colour attribution", " and ".join(texts), claims),
    ]


def article(words: str) -> str:
    """`words` with "a" or "an" before them."""
    return f"an {words}" if words[:1] in tuple("aeiou") else f"a {words}"


def plural(noun: str) -> str:
    return _PLURALS.get(noun, noun + "s")


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _alike(scene: Scene) -> bool:
    return len(scene.shapes) > 1 and len({(shape.kind, shape.colour) for shape in scene.shapes}) == 1


def _noun(kind: str, rng: np.random.Generator) -> str:
    return kind if rng.random() < 0.75 else _pick(rng, _SYNONYMS.get(kind, (kind,)))


def _adjectives(shape: Shape, rng: np.random.Generator, with_colour: bool, with_size: bool) -> str:
    size = _pick(rng, _SIZE_WORDS[shape.size]) if with_size else ""
    return " ".join(word for word in (size, shape.colour if with_colour else "") if word)


def _described(shape: Shape, rng: np.random.Generator, with_colour: bool, with_size: bool) -> str:
    words = f"{_adjectives(shape, rng, with_colour, with_size)} {_noun(shape.kind, rng)}".strip()
    return f"one {words}" if rng.random() < 0.1 else article(words)


def _counted(shapes: list[Shape], rng: np.random.Generator, with_colour: bool, with_size: bool) -> str:
    words = f"{_adjectives(shapes[0], rng, with_colour, with_size)} {plural(_noun(shapes[0].kind, rng))}".strip()
    number = NUMBERS[len(shapes)]
    return f"exactly {number} {words}" if rng.random() < 0.1 else f"{number} {words}"


def _listed(parts: list[str], relation: str | None, rng: np.random.Generator) -> str:
    if relation is None:
        return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    if rng.random() < 0.2:
        return f"{parts[1]} with {parts[0]} {_placed_beside(relation, rng)} it"
    return f"{parts[0]} {_pick(rng, _RELATION_WORDS[relation])} {parts[1]}"


def _placed_beside(relation: str, rng: np.random.Generator) -> str:
    return _pick(rng, _RELATION_WORDS[relation])


def _ground_words(background: Background, rng: np.random.Generator) -> str:
    where = _pick(rng, ("on", "against", "in front of"))
    if background.style == "plain":
        return f"{where} a {_pick(rng, ('', 'plain '))}{background.ground} background"
    if background.style == "graded":
        return f"{where} a {background.ground} to {background.second} gradient"
    return f"{where} a {background.style} {background.ground} background"

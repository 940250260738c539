"""A small world of coloured shapes: scenes, captions, and an evaluator that judges images of them."""

from .captions import CATEGORIES, Claim, Prompt, caption, framed, holds, prompts_of, sample_prompt
from .evaluator import Found, Score, find_shapes, judge, score
from .scenes import COLOURS, KINDS, RELATIONS, Background, Scene, Shape, draw, sample_scene

__all__ = [
    "CATEGORIES",
    "COLOURS",
    "KINDS",
    "RELATIONS",
    "Background",
    "Claim",
    "Found",
    "Prompt",
    "Scene",
    "Score",
    "Shape",
    "caption",
    "draw",
    "find_shapes",
    "framed",
    "holds",
    "judge",
    "prompts_of",
    "sample_prompt",
    "sample_scene",
    "score",
]

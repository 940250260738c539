"""Scenes of coloured shapes: what they are, how they are drawn at random, and how they become pixels.

Lengths are fractions of the image side and y grows downwards, so a scene has no resolution of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

KINDS = ("circle", "square", "triangle", "star", "ring")

# Saturated on purpose: backgrounds stay below a chroma of 60, so that a threshold separates the two (see evaluator).
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (248, 140, 20),
    "yellow": (244, 222, 40),
    "green": (40, 160, 70),
    "blue": (45, 80, 220),
    "purple": (150, 45, 190),
}

GROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (238, 238, 238),
    "grey": (150, 150, 152),
    "black": (36, 36, 40),
    "beige": (218, 204, 176),
    "slate": (84, 96, 116),
}

TEXTURES = ("striped", "checkered", "mottled")

SIZES: dict[str, float] = {"small": 0.12, "medium": 0.165, "large": 0.235}  # circumradius

RELATIONS = ("left of", "right of", "above", "below")

_STAR_INNER = 0.46  # inner over outer radius
_RING_INNER = 0.52
_SQUARE_HALF = 0.86  # half side over radius: between the inscribed square and one of equal width


@dataclass(frozen=True)
class Shape:
    """One shape: its kind, colour and size names, its centre and its radius."""

    kind: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Background:
    """`style` is "plain", "graded" or one of TEXTURES; `ground` and `second` are names in GROUNDS."""

    style: str
    ground: str
    second: str
    angle: float = 0.0  # direction of gradients and stripes, radians
    period: float = 0.12  # of stripes and checks
    seed: int = 0  # of the mottle


@dataclass(frozen=True)
class Scene:
    """One to three shapes on a background; `layout` says how they stand: "single", "row", "column", "triangle"."""

    shapes: tuple[Shape, ...]
    background: Background
    layout: str


def sample_scene(rng: np.random.Generator) -> Scene:
    """One random scene: a single shape, two, several alike, or three different ones."""
    form = rng.choice(4, p=(0.30, 0.38, 0.20, 0.12))
    count = (1, 2, int(rng.integers(2, 4)), 3)[form]
    looks = [(_pick(rng, KINDS), _pick(rng, COLOURS))] * count if form == 2 else _different_looks(rng, count)
    layout = _sample_layout(rng, count)
    shapes = _place_all(rng, looks, layout, alike=form == 2)
    while not _apart(shapes):
        shapes = _place_all(rng, looks, layout, alike=form == 2)
    return Scene(shapes, sample_background(rng), layout)


def sample_background(rng: np.random.Generator) -> Background:
    """Random background: mostly plain, sometimes graded, sometimes textured."""
    style = ("plain", "graded", _pick(rng, TEXTURES))[rng.choice(3, p=(0.6, 0.2, 0.2))]
    ground, second = (str(name) for name in rng.choice(list(GROUNDS), size=2, replace=False))
    angle = float(rng.choice(4)) * np.pi / 4
    return Background(style, ground, second, angle, float(rng.uniform(0.1, 0.16)), int(rng.integers(1 << 16)))


def draw(scene: Scene, side: int = 128) -> np.ndarray:
    """The scene as uint8 [side, side, 3]; edges are blended over one pixel."""
    image = _draw_background(scene.background, side)
    for shape in scene.shapes:
        cover = coverage(shape.kind, shape.x, shape.y, shape.radius, side)[..., None]  # [side, side, 1]
        image = image * (1 - cover) + np.array(COLOURS[shape.colour], np.float32) * cover
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def coverage(kind: str, x: float, y: float, radius: float, side: int) -> np.ndarray:
    """Share of each pixel that the shape covers, float32 [side, side] in 0..1."""
    ys, xs = np.mgrid[0:side, 0:side].astype(np.float32)
    dx, dy = (xs + 0.5) / side - x, (ys + 0.5) / side - y
    distance = _SIGNED_DISTANCE[kind](dx, dy, np.float32(radius))  # negative inside
    return np.clip(0.5 - distance * side, 0, 1)


def _pick(rng: np.random.Generator, names: Iterable[str]) -> str:
    choices = list(names)
    return choices[rng.integers(len(choices))]


def _different_looks(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """`count` pairs (kind, colour) that differ in both, so that a caption without colours still tells them apart."""
    kinds = rng.choice(list(KINDS), size=count, replace=False)
    colours = rng.choice(list(COLOURS), size=count, replace=False)
    return [(str(kind), str(colour)) for kind, colour in zip(kinds, colours, strict=True)]


def _sample_layout(rng: np.random.Generator, count: int) -> str:
    if count == 1:
        return "single"
    return ("row", "column", "triangle")[rng.integers(2 if count == 2 else 3)]


def _sample_size(rng: np.random.Generator, count: int) -> str:
    chances = {1: (0.2, 0.3, 0.5), 2: (0.25, 0.6, 0.15), 3: (0.4, 0.6, 0.0)}[count]
    return list(SIZES)[rng.choice(3, p=chances)]


def _centres(layout: str, count: int) -> list[tuple[float, float]]:
    if layout == "single":
        return [(0.5, 0.5)]
    if layout == "triangle":
        return [(0.5, 0.27), (0.27, 0.72), (0.73, 0.72)]
    along = (0.27, 0.73) if count == 2 else (0.18, 0.5, 0.82)
    return [(at, 0.5) if layout == "row" else (0.5, at) for at in along]


def _place_all(rng: np.random.Generator, looks: list[tuple[str, str]], layout: str, alike: bool) -> tuple[Shape, ...]:
    """Shapes near the centres of their layout; those alike in look are alike in size."""
    count = len(looks)
    sizes = [_sample_size(rng, count)] * count if alike else [_sample_size(rng, count) for _ in looks]
    reach = 0.07 if count == 1 else 0.03
    return tuple(
        Shape(kind, colour, size, x + dx, y + dy, SIZES[size] * scale)
        for (kind, colour), size, (x, y) in zip(looks, sizes, _centres(layout, count), strict=True)
        for dx, dy, scale in [(*rng.uniform(-reach, reach, 2).tolist(), float(rng.uniform(0.94, 1.06)))]
    )


def _apart(shapes: tuple[Shape, ...], gap: float = 0.03) -> bool:
    """True if no two shapes touch or overlap."""
    return all(
        np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + gap for i, a in enumerate(shapes) for b in shapes[:i]
    )


def _draw_background(background: Background, side: int) -> np.ndarray:
    ground = np.array(GROUNDS[background.ground], np.float32)
    weight = _texture_weight(background, side)[..., None]  # [side, side, 1], how much of the second colour
    return ground * (1 - weight) + np.array(GROUNDS[background.second], np.float32) * weight


def _texture_weight(background: Background, side: int) -> np.ndarray:
    ys, xs = (np.mgrid[0:side, 0:side].astype(np.float32) + 0.5) / side
    along = (xs - 0.5) * np.cos(background.angle) + (ys - 0.5) * np.sin(background.angle)
    if background.style == "plain":
        return np.zeros_like(xs)
    if background.style == "graded":
        return np.clip(along * 0.8 + 0.45, 0, 0.9)
    if background.style == "striped":
        return 0.3 * _soft_step(np.sin(2 * np.pi * along / background.period))
    if background.style == "checkered":
        return 0.3 * _soft_step(np.sin(np.pi * xs / background.period) * np.sin(np.pi * ys / background.period))
    return 0.5 * _mottle(background.seed, side)


def _soft_step(wave: np.ndarray) -> np.ndarray:
    return np.clip(wave * 3 + 0.5, 0, 1)


def _mottle(seed: int, side: int, cells: int = 7) -> np.ndarray:
    """Smooth noise in 0..1: random knots, interpolated bilinearly."""
    knots = np.random.default_rng(seed).uniform(size=(cells + 1, cells + 1)).astype(np.float32)
    at = (np.arange(side, dtype=np.float32) + 0.5) / side * cells
    low, part = at.astype(int), at - at.astype(int)
    rows = knots[low] * (1 - part)[:, None] + knots[low + 1] * part[:, None]  # [side, cells + 1]
    return rows[:, low] * (1 - part) + rows[:, low + 1] * part


def _circle(dx: np.ndarray, dy: np.ndarray, radius: np.float32) -> np.ndarray:
    return np.hypot(dx, dy) - radius


def _square(dx: np.ndarray, dy: np.ndarray, radius: np.float32) -> np.ndarray:
    return np.maximum(np.abs(dx), np.abs(dy)) - _SQUARE_HALF * radius


def _ring(dx: np.ndarray, dy: np.ndarray, radius: np.float32) -> np.ndarray:
    middle, half = (1 + _RING_INNER) / 2, (1 - _RING_INNER) / 2
    return np.abs(np.hypot(dx, dy) - middle * radius) - half * radius


def _triangle(dx: np.ndarray, dy: np.ndarray, radius: np.float32) -> np.ndarray:
    """Upright and equilateral: the greatest of the distances to three edges (exact but at the corners)."""
    reach = radius * np.float32(1.12)  # a triangle of equal radius looks small beside a circle
    dy = dy - np.float32(0.14) * reach
    side_edges = np.abs(dx) * np.float32(np.sqrt(3) / 2) - dy * 0.5
    return np.maximum(side_edges, dy) - reach / 2


def _star(dx: np.ndarray, dy: np.ndarray, radius: np.float32) -> np.ndarray:
    """Five points, one upwards: fold the plane into one tenth, then the distance to one edge."""
    reach = radius * np.float32(1.1)
    turn = np.arctan2(dx, -dy) % np.float32(2 * np.pi / 5)
    fold = np.minimum(turn, np.float32(2 * np.pi / 5) - turn)  # 0 at a point, pi/5 at a notch
    length = np.hypot(dx, dy)
    notch = _STAR_INNER * np.array([np.sin(np.pi / 5), np.cos(np.pi / 5)])
    edge = np.array([notch[0], notch[1] - 1.0])  # from the point (0, 1) to the notch
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    px, py = length * np.sin(fold) / reach, length * np.cos(fold) / reach
    return ((px * normal[0] + (py - 1) * normal[1]) * reach).astype(np.float32)


_SIGNED_DISTANCE = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star, "ring": _ring}

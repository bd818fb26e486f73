"""Scenes of coloured shapes: their facts, how they are sampled, and how they are drawn."""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]

BACKGROUNDS: dict[str, Colour] = {
    "white": (250, 250, 250),
    "black": (22, 22, 26),
    "gray": (150, 152, 156),
    "beige": (238, 222, 190),
    "light blue": (178, 216, 240),
}
COLOURS: dict[str, Colour] = {
    "red": (214, 34, 40),
    "orange": (248, 136, 22),
    "yellow": (252, 218, 36),
    "green": (36, 148, 62),
    "blue": (32, 84, 220),
    "purple": (134, 48, 178),
    "pink": (250, 122, 180),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES: dict[str, float] = {"small": 0.062, "large": 0.1}  # radius, as a fraction of the image's side
COUNTS = (1, 2, 3, 4)
POSITIONS: dict[str, tuple[int, int]] = {  # column and row of the quadrant, in reading order
    "top left": (0, 0),
    "top right": (1, 0),
    "bottom left": (0, 1),
    "bottom right": (1, 1),
}
MAX_GROUPS = 3
PICTURE_SIZE = 96

# One in this many scenes, chosen by a hash of the facts, never occurs in training, whatever the seed.
HELD_OUT_PART = 4

CLEAR_DISTANCE = 110  # Euclidean distance in RGB; closer colours are hard to distinguish from the background
SUPERSAMPLING = 4
LINES = (0.25, 0.75)  # centres of the groups, as a fraction of the image's side
PITCH = 0.25  # distance between the centres of a group's objects
SLOTS = ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))  # positions of a group's objects, in units of PITCH
GROUP_JITTER = 0.008  # of the position, as a fraction of the image's side
OBJECT_JITTER = 0.008
SIZE_JITTER = 0.06  # as a fraction of the radius
LIGHTNESS_JITTER = 8  # of 255
TINT_JITTER = 3  # of 255, per channel
TURN_JITTER = math.radians(10)


def _polygon(*corners: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Convert corners from (degrees clockwise from the top, radius) to (x, y)."""
    return tuple((r * math.sin(math.radians(a)), -r * math.cos(math.radians(a))) for a, r in corners)


# The radii make all shapes look equally large. A circle has no outline.
OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": _polygon(*((45 + 90 * i, 1.24) for i in range(4))),
    "triangle": _polygon(*((120 * i, 1.26) for i in range(3))),
    "star": _polygon(*((36 * i, 1.24 if i % 2 == 0 else 0.5) for i in range(10))),
}


@dataclass(frozen=True)
class Group:
    """Equal objects close together, such as two large red circles in the top left."""

    count: int
    size: str
    colour: str
    shape: str
    position: str


@dataclass(frozen=True)
class Scene:
    """One to three groups on a background, sorted in reading order, so that equal facts make equal scenes."""

    background: str
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        order = list(POSITIONS)
        object.__setattr__(self, "groups", tuple(sorted(self.groups, key=lambda g: order.index(g.position))))


def clear_colours(background: str) -> list[str]:
    """Return the object colours that are easy to see on a background."""
    ground = BACKGROUNDS[background]
    return [name for name, colour in COLOURS.items() if math.dist(colour, ground) > CLEAR_DISTANCE]


def is_held_out(scene: Scene) -> bool:
    """Return whether a scene is reserved for evaluation; this depends only on its facts, not on a seed."""
    return zlib.crc32(repr(scene).encode()) % HELD_OUT_PART == 0


def scene_rng(seed: int, index: int) -> random.Random:
    """Return the random generator for scene `index` of series `seed`, and for its image, caption and question."""
    return random.Random(f"scene {seed} {index}")


def sample_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """Return a random scene, either one for training or one that never occurs in training.

    No two groups of a scene share both colour and shape, so that they cannot be confused.

    >>> sample_scene(scene_rng(seed=1, index=0)) == sample_scene(scene_rng(seed=1, index=0))
    True
    """
    while True:
        background = rng.choice(list(BACKGROUNDS))
        colours = clear_colours(background)
        places = rng.sample(list(POSITIONS), rng.randint(1, MAX_GROUPS))
        groups = tuple(
            Group(rng.choice(COUNTS), rng.choice(list(SIZES)), rng.choice(colours), rng.choice(SHAPES), place)
            for place in places
        )
        scene = Scene(background, groups)
        distinct = len({(g.colour, g.shape) for g in groups}) == len(groups)
        if distinct and is_held_out(scene) == held_out:
            return scene


def render(scene: Scene, rng: random.Random, size: int = PICTURE_SIZE) -> Image.Image:
    """Return a scene as an RGB image of `size` x `size` pixels.

    Positions, sizes, rotations and colours vary slightly with `rng`, but never so much that a fact becomes unclear. The
    same state of `rng` gives the same image, or the same image enlarged if `size` differs.
    """
    side = size * SUPERSAMPLING
    picture = Image.new("RGB", (side, side), _vary(BACKGROUNDS[scene.background], rng))
    draw = ImageDraw.Draw(picture)
    for group in scene.groups:
        _draw_group(draw, group, rng, side)
    return picture.reduce(SUPERSAMPLING)


def _draw_group(draw: ImageDraw.ImageDraw, group: Group, rng: random.Random, side: int) -> None:
    column, row = POSITIONS[group.position]
    x0 = LINES[column] + rng.uniform(-GROUP_JITTER, GROUP_JITTER)
    y0 = LINES[row] + rng.uniform(-GROUP_JITTER, GROUP_JITTER)
    colour = _vary(COLOURS[group.colour], rng)
    slots = rng.sample(SLOTS, group.count)
    for dx, dy in slots:
        x = x0 + dx * PITCH + rng.uniform(-OBJECT_JITTER, OBJECT_JITTER)
        y = y0 + dy * PITCH + rng.uniform(-OBJECT_JITTER, OBJECT_JITTER)
        radius = SIZES[group.size] * rng.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER)
        turn = rng.uniform(-TURN_JITTER, TURN_JITTER)
        if group.shape == "circle":
            draw.ellipse([(x - radius) * side, (y - radius) * side, (x + radius) * side, (y + radius) * side], colour)
        else:
            sin, cos = radius * math.sin(turn) * side, radius * math.cos(turn) * side
            corners = [(x * side + a * cos - b * sin, y * side + a * sin + b * cos) for a, b in OUTLINES[group.shape]]
            draw.polygon(corners, colour)


def _vary(colour: Colour, rng: random.Random) -> Colour:
    """Return a colour that is slightly lighter or darker and of a slightly different tint."""
    lighter = rng.randint(-LIGHTNESS_JITTER, LIGHTNESS_JITTER)
    red, green, blue = (min(255, max(0, c + lighter + rng.randint(-TINT_JITTER, TINT_JITTER))) for c in colour)
    return red, green, blue

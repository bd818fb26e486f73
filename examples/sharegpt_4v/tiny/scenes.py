"""Scenes of coloured shapes: what they hold, how they are sampled and how they are drawn."""

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
SIZES: dict[str, float] = {"small": 0.062, "large": 0.1}  # radius, as a part of the picture's side
COUNTS = (1, 2, 3, 4)
POSITIONS: dict[str, tuple[int, int]] = {  # column and row of the quarters, in reading order
    "top left": (0, 0),
    "top right": (1, 0),
    "bottom left": (0, 1),
    "bottom right": (1, 1),
}
MAX_GROUPS = 3
PICTURE_SIZE = 96

# A quarter of all scenes' fact lists never appear in training, whatever the seed.
HELD_OUT_PART = 4

CLEAR_DISTANCE = 110  # Euclidean, in RGB: closer colours are hard to tell from the background
SUPERSAMPLING = 4
LINES = (0.25, 0.75)  # where the middles of the groups stand, as a part of the picture's side
PITCH = 0.25  # between the centres of a group's objects
SLOTS = ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5))  # where a group's objects stand, in pitches
GROUP_JITTER, OBJECT_JITTER, SIZE_JITTER = 0.008, 0.008, 0.06
LIGHTNESS_JITTER, TINT_JITTER, TURN_JITTER = 8, 3, math.radians(10)


def _polygon(*corners: tuple[float, float]) -> tuple[tuple[float, float], ...]:
    """Corners given as (degrees clockwise from the top, radius), in x and y."""
    return tuple((r * math.sin(math.radians(a)), -r * math.cos(math.radians(a))) for a, r in corners)


# Radii that make all shapes look equally large; a circle has no outline here.
OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": _polygon(*((45 + 90 * i, 1.24) for i in range(4))),
    "triangle": _polygon(*((120 * i, 1.26) for i in range(3))),
    "star": _polygon(*((36 * i, 1.24 if i % 2 == 0 else 0.5) for i in range(10))),
}


@dataclass(frozen=True)
class Group:
    """Some equal objects that stand together: two large red circles in the top left."""

    count: int
    size: str
    colour: str
    shape: str
    position: str


@dataclass(frozen=True)
class Scene:
    """One to three groups on a background. Groups are kept in reading order, so equal facts make equal scenes."""

    background: str
    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        order = list(POSITIONS)
        object.__setattr__(self, "groups", tuple(sorted(self.groups, key=lambda g: order.index(g.position))))


def clear_colours(background: str) -> list[str]:
    """The colours of objects that stand out from a background."""
    ground = BACKGROUNDS[background]
    return [name for name, colour in COLOURS.items() if math.dist(colour, ground) > CLEAR_DISTANCE]


def is_held_out(scene: Scene) -> bool:
    """Whether a scene's facts are kept for evaluation. It hangs on the facts alone, not on a seed."""
    return zlib.crc32(repr(scene).encode()) % HELD_OUT_PART == 0


def scene_rng(seed: int, index: int) -> random.Random:
    """The random source of the scene number `index` of the series `seed`, its picture, caption and question."""
    return random.Random(f"scene {seed} {index}")


def sample_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """Draw a scene: of the training kind, or of the kind that training never sees.

    No two groups of a scene share both colour and shape, so that groups cannot run into one another.

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
    """Draw a scene as an RGB picture of `size` x `size` pixels.

    Places, sizes, turns and colours vary a little with `rng`; the facts stay plain to see. The same state of `rng`
    gives the same picture, and at another `size` the same picture enlarged.
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
    """A colour a little lighter, darker or of another tint."""
    lighter = rng.randint(-LIGHTNESS_JITTER, LIGHTNESS_JITTER)
    red, green, blue = (min(255, max(0, c + lighter + rng.randint(-TINT_JITTER, TINT_JITTER))) for c in colour)
    return red, green, blue

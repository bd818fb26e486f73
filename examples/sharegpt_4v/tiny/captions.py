"""Captions of scenes: write a scene's caption in one of several sentence forms, and parse a caption back into facts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from scenes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, SIZES, Group, Scene

DEFAULT_QUESTION = "Describe this image"
QUESTIONS: dict[str, int] = {  # question -> relative frequency
    DEFAULT_QUESTION: 8,
    "Analyze the image in a comprehensive and detailed manner.": 2,
    "Describe this image in detail.": 1,
    "Please describe the picture.": 1,
    "What is in this picture?": 1,
    "What does the image show?": 1,
    "What do you see?": 1,
}
NUMBERS = {1: "a", 2: "two", 3: "three", 4: "four"}
PLACES = {
    "top left": "in the top left",
    "top right": "in the top right",
    "bottom left": "in the bottom left",
    "bottom right": "in the bottom right",
}
CORNERS = {position: f"the {position}" for position in PLACES}


def _noun(group: Group) -> str:
    return f"{NUMBERS[group.count]} {group.size} {group.colour} {group.shape}{'s' if group.count > 1 else ''}"


def _be(group: Group) -> str:
    return "are" if group.count > 1 else "is"


def _list(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _begin(text: str) -> str:
    return text[0].upper() + text[1:]


def _there(scene: Scene) -> str:
    return " ".join(f"{_begin(PLACES[g.position])} there {_be(g)} {_noun(g)}." for g in scene.groups)


def _shows(scene: Scene) -> str:
    return " ".join(f"The {g.position} shows {_noun(g)}." for g in scene.groups)


def _in_turn(scene: Scene, places: dict[str, str], verb: str) -> str:
    """Position, verb, objects, then position, objects: "in the top left is a star and in the top right two dots"."""
    first, *others = scene.groups
    parts = [f"{places[first.position]} {verb} {_noun(first)}"]
    return _list(parts + [f"{places[group.position]} {_noun(group)}" for group in others])


# The position always comes before the objects, so that the model knows where to look when it generates them.
FORMS: tuple[Callable[[Scene], str], ...] = (
    lambda s: f"The background is {s.background}. {_there(s)}",
    lambda s: f"{_there(s)} The background is {s.background}.",
    lambda s: f"A {s.background} background. {_shows(s)}",
    lambda s: f"{_begin(_in_turn(s, PLACES, 'you can see'))}. The background is {s.background}.",
    lambda s: f"On a {s.background} background, {_in_turn(s, CORNERS, 'shows')}.",
    lambda s: f"This picture has a {s.background} background. {_begin(_in_turn(s, PLACES, 'we see'))}.",
)


def caption(scene: Scene, rng: random.Random) -> str:
    """Return a caption with every fact of a scene, in one of several sentence forms; groups are in reading order.

    >>> scene = Scene("white", (Group(2, "small", "red", "star", "top left"),))
    >>> FORMS[0](scene)
    'The background is white. In the top left there are two small red stars.'
    """
    return rng.choice(FORMS)(scene)


def question(rng: random.Random) -> str:
    """Return one of several ways to ask for a caption; the default one is the most frequent."""
    return rng.choices(list(QUESTIONS), list(QUESTIONS.values()))[0]


# The parser knows no sentence forms: it looks for the three kinds of facts, and allows only harmless words between.
_COUNT_WORDS = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4}
_GROUP = re.compile(rf"({'|'.join(_COUNT_WORDS)}) ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})(s?)")
_PLACE = re.compile(rf"(?:in |at )?the ({'|'.join(POSITIONS)})(?: corner)?")
_GROUND = re.compile(rf"an? ({'|'.join(BACKGROUNDS)}) background|the background is ({'|'.join(BACKGROUNDS)})")
_FACT = re.compile(rf"\b(?:(?P<group>{_GROUP.pattern})|(?P<place>{_PLACE.pattern})|(?P<ground>{_GROUND.pattern}))\b")
_HARMLESS = set(
    re.findall(
        r"\w+",
        "there is are the image this picture shows a of you can see with and on against where which in we it has",
    )
)


def parse_caption(text: str) -> Scene | None:
    """Return the facts that a caption states, or None if any is unclear, repeated or not about a scene.

    The order of the groups does not matter, since a scene sorts them. Groups and positions come in pairs: a position
    belongs to the group right before or after it.

    >>> parse_caption("Two small red stars are in the top left. The background is white.") == Scene(
    ...     "white", (Group(2, "small", "red", "star", "top left"),)
    ... )
    True
    >>> parse_caption("Two small red stars and a dog are in the top left. The background is white.") is None
    True
    """
    if not text.endswith("."):  # truncated
        return None
    words = " ".join(re.sub(r"[.,]", " ", text.lower()).split())
    if not set(_FACT.sub(" ", words).split()) <= _HARMLESS:
        return None
    facts = list(_FACT.finditer(words))
    grounds = [_GROUND.fullmatch(f.group()) for f in facts if f["ground"]]
    rest = [f for f in facts if not f["ground"]]
    if len(grounds) != 1 or not grounds[0] or not rest or len(rest) % 2:
        return None
    groups = [_read_group(first, second) for first, second in zip(rest[::2], rest[1::2], strict=True)]
    if None in groups or len({g.position for g in groups if g}) != len(groups):
        return None
    return Scene(grounds[0][1] or grounds[0][2], tuple(g for g in groups if g))


def _read_group(first: re.Match[str], second: re.Match[str]) -> Group | None:
    """Return the group that two neighbouring facts describe, which must be its objects and its position."""
    objects, place = (first, second) if first["group"] else (second, first)
    what, where = _GROUP.fullmatch(objects.group()), _PLACE.fullmatch(place.group())
    if not what or not where:
        return None
    count = _COUNT_WORDS[what[1]]
    if (count > 1) != bool(what[5]):  # "two star", "a stars"
        return None
    return Group(count, what[2], what[3], what[4], where[1])

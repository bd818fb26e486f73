"""Caption styles as data: a name, the question that gets such captions from ShareGPT4V, and what is done to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mindone.models.share4v.suggestions import unknown

from ..rules.text_rules import TextRules, clean, violations


@dataclass(frozen=True)
class Style:
    """One way to caption.

    Attributes:
        name: what `get_style` and `--style` know it by.
        prompt: the question; where the model was trained on a fitting one, that one word for word.
        description: what the captions are like and are for, in one line.
        max_new_tokens: room that such captions need; a command line that names its own goes first.
        rules: what is done to the finished text.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.prompts.styles import get_style
        >>> get_style("one-sentence").prompt
        'Provide a one-sentence caption for the provided image.'
    """

    name: str
    prompt: str
    description: str
    max_new_tokens: int = 256
    rules: TextRules = field(default_factory=TextRules)


_DIRECT = TextRules(strip_openings=True)
_BEGIN = "Begin with the content itself, not with words such as 'The image shows' or 'In this picture'."
_ROWS: dict[str, dict[str, Any]] = {
    "default": {
        "prompt": "Describe this image",
        "description": "the question of the model's own demonstration: a paragraph or two",
        "max_new_tokens": 384,
    },
    "one-sentence": {
        # One of the questions of the instructions that stage 2 was trained on.
        "prompt": "Provide a one-sentence caption for the provided image.",
        "description": "one plain sentence, as in COCO",
        "max_new_tokens": 64,
        "rules": TextRules(strip_openings=True, max_sentences=1),
    },
    "short": {
        "prompt": f"Describe the main subject of this image and where it is, in at most two sentences. {_BEGIN}",
        "description": "one or two sentences: who or what, and where",
        "max_new_tokens": 96,
        "rules": TextRules(strip_openings=True, max_sentences=2),
    },
    "paragraph": {
        "prompt": "Describe this image in one paragraph of four to six sentences.",
        "description": "one paragraph of medium length",
        "max_new_tokens": 224,
    },
    "detailed": {
        # The question of ShareGPT4V's own captions.
        "prompt": "Analyze the image in a comprehensive and detailed manner.",
        "description": "what ShareGPT4V was trained on: objects, attributes, places, mood",
        "max_new_tokens": 512,
    },
    "exhaustive": {
        "prompt": "Describe everything that can be seen in this image, from the foreground to the background: every "
        "person, animal and object with its number, colour, shape, material, size and position, what each of them "
        "does, how they relate to one another, all written text, the setting, the light, the viewpoint and the style.",
        "description": "everything there is, as long as it takes",
        "max_new_tokens": 1024,
    },
    "direct": {
        "prompt": f"Describe this image in detail. {_BEGIN}",
        "description": "detailed, and starting with the content directly",
        "max_new_tokens": 384,
        "rules": _DIRECT,
    },
    "factual": {
        "prompt": "Describe only what can be seen in this image, in plain words: the objects, their number, their "
        "colours and where they are. Do not guess at feelings, intentions, names or anything outside the picture. "
        f"{_BEGIN}",
        "description": "no mood and no guesses, for data where an invention costs more than an omission",
        "max_new_tokens": 256,
        "rules": _DIRECT,
    },
    "tags": {
        "prompt": "List the objects, their attributes, the actions, the setting and the style of this image as short "
        "tags, separated by commas. Write the tags alone.",
        "description": "comma-separated tags in lower case, none twice",
        "max_new_tokens": 128,
        "rules": TextRules(strip_openings=True, as_tags=True),
    },
    "text-to-image": {
        "prompt": "Write the prompt from which a text-to-image model would draw this image: the medium, the subject "
        "and its look, what it does, the setting, the composition, the light and the colours, in one paragraph. "
        f"{_BEGIN}",
        "description": "a prompt for training or driving Stable Diffusion and its kin",
        "max_new_tokens": 192,
        "rules": _DIRECT,
    },
    "text-to-video": {
        "prompt": "Describe this video frame for a text-to-video model, in one paragraph: the subject and its look, "
        "what it is doing and how it moves, the background, the light, the visual style, and the position, angle "
        f"and distance of the camera. {_BEGIN}",
        "description": "subject, action, background, light and camera, as Open-Sora's training data want it",
        "max_new_tokens": 256,
        "rules": _DIRECT,
    },
    "camera": {
        "prompt": "Describe how this picture was taken or made: the kind of shot, the angle and height of the camera, "
        f"the framing, what is in focus, the light, the colours and the style. {_BEGIN}",
        "description": "viewpoint, framing, focus, light and colours, hardly the content",
        "max_new_tokens": 192,
        "rules": _DIRECT,
    },
    "layout": {
        "prompt": "Say where each thing in this image is: go from left to right and from the foreground to the "
        "background, name each object with its number and colour, and say what it is beside, above, below, in front "
        f"of or behind. {_BEGIN}",
        "description": "positions, numbers and relations of objects",
        "max_new_tokens": 384,
        "rules": _DIRECT,
    },
    "people": {
        "prompt": "Describe the people in this image: how many there are, and for each the apparent age group, the "
        "clothes, the posture, the expression and what they are doing, and where they are. Do not guess who they "
        f"are. {_BEGIN}",
        "description": "number, clothes, postures and actions of people; no names",
        "max_new_tokens": 256,
        "rules": _DIRECT,
    },
    "product": {
        "prompt": "Describe the product in this image for a shop's catalogue: what it is, its colour, material, "
        "shape, pattern, parts and any brand or text that can be read on it. Leave the background out. "
        f"{_BEGIN}",
        "description": "the article alone, for catalogues",
        "max_new_tokens": 192,
        "rules": _DIRECT,
    },
    "artwork": {
        "prompt": "Describe this artwork: the medium and technique, the style, the subject, the composition, the "
        f"colours and the light. {_BEGIN}",
        "description": "paintings, drawings and renderings: medium, style, subject",
        "max_new_tokens": 256,
        "rules": _DIRECT,
    },
    "alt-text": {
        "prompt": "Write the alternative text of this image for a person who cannot see it: one short sentence that "
        f"says what matters. {_BEGIN}",
        "description": "one sentence for screen readers",
        "max_new_tokens": 64,
        "rules": TextRules(strip_openings=True, max_sentences=1),
    },
    "ocr": {
        "prompt": "Read all the text in this image. Write it exactly as it stands there, line by line from top to "
        "bottom, and nothing else. If there is no text, answer: no text",
        "description": "the text that can be read, line by line",
        "max_new_tokens": 512,
    },
    "document": {
        "prompt": "Describe this document, chart or screen: what kind it is, its title, its parts and how they are "
        "arranged, the text that can be read, and the values or relations that it shows.",
        "description": "charts, forms, slides and screens",
        "max_new_tokens": 512,
    },
}
STYLES: dict[str, Style] = {name: Style(name=name, **row) for name, row in _ROWS.items()}


def asks_for_tags(prompt: str) -> bool:
    """Return whether a prompt is that of a style whose captions are lists of tags."""
    return any(style.prompt == prompt for style in STYLES.values() if style.rules.as_tags)


def apply_style(text: str, style: str | None, rules: TextRules) -> tuple[str, tuple[str, ...]]:
    """Return a caption after the rules of its style, combined with others, and the rules that it breaks then.

    Args:
        text: the caption as the model gave it.
        style: name of its style; None for a caption of another prompt.
        rules: those of the job; where they set a limit, that of the style does not count.

    Raises:
        ValueError: the style is unknown, or contradicts the rules.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.prompts.styles import apply_style
        >>> from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules
        >>> apply_style("The image shows a cat. It sleeps.", "one-sentence", TextRules(required_words=("dog",)))
        ('A cat.', ('required word missing: dog',))
    """
    combined = rules if style is None else get_style(style).rules.combine(rules)
    cleaned = clean(text, combined)
    return cleaned, violations(cleaned, combined)


def get_style(name: str) -> Style:
    """Return the style of that name.

    Raises:
        ValueError: the name is not known; the message lists the known ones and the closest.
    """
    if isinstance(name, str) and name in STYLES:
        return STYLES[name]
    raise ValueError(unknown("caption style", name, STYLES))

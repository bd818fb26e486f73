"""/apply_style: what `share4v caption-dataset` would do to the text of a caption, for the pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..dataset.prompts.styles import STYLES, apply_style
from ..dataset.rules.text_rules import TextRules
from .errors import invalid
from .fields import Field, Fields
from .value_types import Choice, Text

APPLY_STYLE_BYTES = 2**20  # of a body
APPLY_STYLE = Fields(
    [
        Field("text", "works", "a caption as the model gave it", Text(100_000), (), True),
        Field("style", "works", "name of a style of captions; left out, the caption has none", Choice(tuple(STYLES))),
        Field("name", "works", "of the text, on the page of a job with named texts; otherwise ignored", Text(200)),
    ]
)


def styled(values: Mapping[str, Any], rules: TextRules | None = None) -> dict[str, Any]:
    """Return the text of a request with the rules of its style applied, and the rules that it breaks then.

    Args:
        values: of APPLY_STYLE.
        rules: further rules, those of a job.

    Raises:
        ApiError: (400) the style contradicts the job's rules.
    """
    try:
        text, broken = apply_style(values["text"], values.get("style"), rules or TextRules())
    except ValueError as error:
        raise invalid(str(error), "style") from error
    return {"text": text, "broken_rules": list(broken)}

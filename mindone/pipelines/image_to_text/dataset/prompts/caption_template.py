"""Caption templates: what is written around every caption, such as a trigger word; the model never sees it.

A template is applied when outputs are written. Records have the captions without it, so that another template costs no
model time.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .variables import Described, VariableError, fill, variables_of

CAPTION = "caption"  # the variable that stands for the caption; it replaces a column of that name
WHERE = "the template"


def check_template(template: str) -> None:
    """Check that a template contains the caption.

    Raises:
        VariableError: it does not, or it has a lone brace.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.prompts.caption_template import check_template
        >>> check_template("sks, {caption}")
    """
    if CAPTION not in variables_of(template, WHERE):
        example = f"{template.strip()} {{{CAPTION}}}".strip()
        raise VariableError(f"template must contain {{{CAPTION}}}, got {template!r}: write it as in {example!r}")


def apply_template(
    template: str, item: Described, caption: str, texts: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Return a caption in its template.

    Args:
        template: the template, with variables as in prompts.
        item: the input, or its record.
        caption: the caption.
        texts: further variables.

    Raises:
        VariableError: the caption is empty, or the input lacks a value that the template needs.

    Example:
        >>> from types import SimpleNamespace
        >>> from mindone.pipelines.image_to_text.dataset.prompts.caption_template import apply_template
        >>> item = SimpleNamespace(key="cats/tom", source="cats/tom.jpg", columns={"tags": ["cat", "grey"]})
        >>> apply_template("sks, {tags}, {caption}", item, "A cat sits on a sofa.")
        'sks, cat, grey, A cat sits on a sofa.'
    """
    if not caption.strip():
        raise VariableError(f"{WHERE}: the caption is empty")
    try:
        return fill(template, item, {**texts, CAPTION: caption}, is_prompt=False)
    except VariableError as error:
        raise VariableError(f"{WHERE}: {error}") from None

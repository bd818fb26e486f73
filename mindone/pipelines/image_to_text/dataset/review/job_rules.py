"""The rules of a job for its captions, as job.json has them."""

from __future__ import annotations

from typing import Any

from ..rules.text_rules import TextRules


def job_rules(description: Any, text: str = "") -> TextRules:
    """Return the rules of a job.

    Args:
        description: what job.json holds.
        text: name of a text, in a job with named texts, which have rules of their own; "" for the job's.

    Raises:
        ValueError: the settings are damaged, or of a version with other rules.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.review.job_rules import job_rules
        >>> job_rules({"captions": {"rules": {"max_sentences": 1, "forbidden_words": ["dog"]}}}).forbidden_words
        ('dog',)
    """
    try:
        captions = (description["texts"][text] if text else description)["captions"]
        values: dict[str, Any] = {
            name: tuple(one) if isinstance(one, list) else one for name, one in captions["rules"].items()
        }
        return TextRules(**values)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("the rules in the job's job.json cannot be read: run the job again") from error

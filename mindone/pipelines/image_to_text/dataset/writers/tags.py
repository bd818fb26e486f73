"""The text with tags, in formats that keep tags apart from the caption."""

from __future__ import annotations

from collections.abc import Sequence

TAGS = "tags"  # of an entry in sd-scripts' JSON; the text, and the column of an input, that has them


def check_texts(names: Sequence[str]) -> None:
    """Check that each text of an image has a place in an entry.

    Args:
        names: of the job's texts; empty in a job without named texts.

    Raises:
        ValueError: there are others than "tags" and one more.
    """
    captions = [name for name in names if name != TAGS]
    if len(captions) > 1:
        others = " and ".join(map(repr, captions[1:]))
        raise ValueError(
            "the format sd-scripts-json has one caption and the tags of each image: it takes the texts "
            f"{captions[0]!r} and {TAGS!r}, and has no place for {others}. Name the text with the tags {TAGS!r}, "
            f"leave {others} out of texts (--text), or choose another format (--format)"
        )

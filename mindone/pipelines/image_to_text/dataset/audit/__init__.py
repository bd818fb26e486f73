"""Word audit of captions: how many contain each word, phrase and tag, near-duplicate captions, and a trigger word."""

from .audit import CaptionAudit, audit_captions
from .caption_texts import CaptionText, SourceError, caption_texts
from .limits import MEASURES, exceeded, parse_limit

__all__ = [
    "MEASURES",
    "CaptionAudit",
    "CaptionText",
    "SourceError",
    "audit_captions",
    "caption_texts",
    "exceeded",
    "parse_limit",
]

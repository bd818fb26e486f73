"""Scoring captions against references: BLEU, METEOR, ROUGE-L, CIDEr and SPICE, computed by pycocoevalcap."""

from .caption_files import CaptionFile, match, read_captions
from .metrics import METRICS, Scores, score_captions

__all__ = ["METRICS", "CaptionFile", "Scores", "match", "read_captions", "score_captions"]

"""The metrics, each a row of a table; what cannot be computed here is named, and the others are computed."""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from .ptb_tokenizer import java_problem, tokenize

Words = dict[int, list[str]]
_PACKAGE = "pycocoevalcap"
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# SPICE's serializer looks into Java's own classes, which Java 16 and later forbid unless they are opened.
_OPENED = ("lang", "math", "net", "text", "util", "util.concurrent")


class Unavailable(RuntimeError):
    """A metric cannot be computed here; the message says why and what to do."""


class Metric(NamedTuple):
    """One of pycocoevalcap's scorers.

    `titles` name its scores; `scorer` is "module:class" with its arguments; `needs_java`; `prepare` gets ready what it
    needs beyond that, and raises Unavailable.
    """

    titles: tuple[str, ...]
    scorer: str
    arguments: tuple[Any, ...] = ()
    needs_java: bool = False
    prepare: Callable[[bool], None] = lambda download: None


@dataclass(frozen=True)
class Scores:
    """Scores of some captions.

    Attributes:
        scores: metric -> score of all images together. BLEU, METEOR, ROUGE-L and SPICE lie in 0..1, CIDEr in 0..10.
        not_computed: metric -> why not, and what to do.
        images: how many were scored.
        tokenizer: which one made the words.
        per_image: for each image, by its key, metric -> score.
        notes: what to know when reading the scores.
    """

    scores: Mapping[str, float]
    not_computed: Mapping[str, str]
    images: int
    tokenizer: str
    per_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def score_captions(
    predictions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str] | None = None,
    tokenizer: str = "auto",
    download: bool = True,
) -> Scores:
    """Score captions against references with pycocoevalcap.

    Args:
        predictions: key of an image -> its caption.
        references: key -> what people wrote, one caption or more; the same keys.
        metrics: names in METRICS, by default all.
        tokenizer: "ptb" (Stanford's, needs Java), "python", or "auto": "ptb" where Java is.
        download: whether SPICE may download its parser's model (about 400 MB, once) where it is missing.

    Raises:
        ValueError: keys differ, an image has no reference, there is nothing to score, or a name is not known.
        RuntimeError: the tokenizer "ptb" was asked for and does not work.
        ImportError: pycocoevalcap is not installed.

    Example:
        >>> from mindone.pipelines.image_to_text.evaluation import score_captions
        >>> made = score_captions({"a": "a red dog"}, {"a": ["a red cat"]}, ["bleu"], "python")
        >>> round(made.scores["BLEU-1"], 3)
        0.667
    """
    _check(predictions, references)
    wanted = list(METRICS) if metrics is None else [_known(name) for name in metrics]
    _check_installed()
    keys = list(predictions)
    given, made, by = _words(predictions, references, tokenizer)
    java = java_problem() if any(METRICS[name].needs_java for name in wanted) else None
    scores: dict[str, float] = {}
    each: list[dict[str, float]] = [{} for _ in keys]
    not_computed: dict[str, str] = {}
    for name in wanted:
        metric = METRICS[name]
        try:
            if metric.needs_java and java is not None:
                raise Unavailable(java)
            metric.prepare(download)
            for title, score, own in _compute(metric, given, made):
                scores[title] = score
                for row, value in zip(each, own, strict=True):
                    row[title] = value
        except Unavailable as reason:
            not_computed.update(dict.fromkeys(metric.titles, str(reason)))
    per_image = dict(zip(keys, each, strict=True))
    return Scores(scores, not_computed, len(keys), by, per_image, tuple(_notes(made, keys, wanted)))


def _words(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], tokenizer: str
) -> tuple[Words, Words, str]:
    """Return the words of references and of predictions, by number, from one call: Java is started once."""
    count = len(predictions)
    captions: dict[int, Sequence[str]] = {n: [text] for n, text in enumerate(predictions.values())}
    captions |= {count + n: references[key] for n, key in enumerate(predictions)}
    words, by = tokenize(captions, tokenizer)
    return {n: words[count + n] for n in range(count)}, {n: words[n] for n in range(count)}, by


def _compute(metric: Metric, given: Words, made: Words) -> Iterator[tuple[str, float, list[float]]]:
    """Yield each score of one scorer: title, score of all, and those of the images in order.

    Raises:
        Unavailable: the scorer failed, whatever it was; most of them are programs of their own.
    """
    module, _, name = metric.scorer.partition(":")
    try:
        with _opened_java() if metric.needs_java else _nothing():
            scorer = getattr(import_module(module), name)(*metric.arguments)
            quiet = {"verbose": 0} if name == "Bleu" else {}
            total, own = scorer.compute_score(given, made, **quiet)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Unavailable(_why(name, error)) from error
    totals, owns = (total, own) if len(metric.titles) > 1 else ([total], [own])
    for title, score, values in zip(metric.titles, totals, owns, strict=True):
        numbers = [float(value["All"]["f"] if isinstance(value, Mapping) else value) for value in values]
        if not math.isfinite(score):
            raise Unavailable(f"{name} gave {score}, which is no number: a caption has nothing that it can score")
        yield title, float(score), numbers


def _why(name: str, error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{name}'s Java program ended with status {error.returncode}; what it said stands above"
    return f"{name} failed: {type(error).__name__}: {error}"


def _prepare_spice(download: bool) -> None:
    """See that the parser's model is there; pycocoevalcap comes without it."""
    spice = import_module(f"{_PACKAGE}.spice.get_stanford_models")
    folder = Path(str(spice.__file__)).parent / "lib"
    missing = [name for name in _SPICE_JARS if not (folder / name).is_file()]
    command = f"python -m {_PACKAGE}.spice.get_stanford_models"
    what = "SPICE needs the model of Stanford CoreNLP 3.6.0 (about 400 MB)"
    if not missing:
        return
    if len(missing) < len(_SPICE_JARS):
        raise Unavailable(
            f"{what}, of which {folder} has a part only: empty that folder of {_SPICE_JARS[0]}, then {command}"
        )
    if not download:
        raise Unavailable(f"{what}, which is not here, and downloads are off: run {command}")
    try:
        spice.get_stanford_models()
    except Exception as error:
        raise Unavailable(
            f"{what}, which could not be downloaded ({error}): run {command} where there is a connection, and copy "
            f"{' and '.join(_SPICE_JARS)} to {folder}"
        ) from error


METRICS: dict[str, Metric] = {
    "bleu": Metric(("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"), f"{_PACKAGE}.bleu.bleu:Bleu", (4,)),
    "meteor": Metric(("METEOR",), f"{_PACKAGE}.meteor.meteor:Meteor", needs_java=True),
    "rouge-l": Metric(("ROUGE-L",), f"{_PACKAGE}.rouge.rouge:Rouge"),
    "cider": Metric(("CIDEr",), f"{_PACKAGE}.cider.cider:Cider"),
    "spice": Metric(("SPICE",), f"{_PACKAGE}.spice.spice:Spice", needs_java=True, prepare=_prepare_spice),
}


def _check(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not predictions:
        raise ValueError("there are no captions to score")
    for one, other, what in ((predictions, references, "reference"), (references, predictions, "prediction")):
        missing = [key for key in one if key not in other]
        if missing:
            raise ValueError(f"{len(missing)} images have no {what}, {missing[0]!r} for one: score what both have")
    empty = [key for key, texts in references.items() if isinstance(texts, str) or not texts]
    if empty:
        raise ValueError(f"the references of {empty[0]!r} are {references[empty[0]]!r}: expected a list of captions")


def _check_installed() -> None:
    if find_spec(_PACKAGE) is None:
        raise ImportError(f"scores need {_PACKAGE}: install it with pip install 'mindone-share4v[score]'")


def _known(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return name


def _notes(made: Words, keys: Sequence[str], wanted: Sequence[str]) -> Iterator[str]:
    empty = sum(not texts[0] for texts in made.values())
    if empty:
        yield f"{empty} captions have no words and score nothing"
    if "cider" in wanted and len(keys) == 1:
        yield "CIDEr weighs words by how few images have them, so that with one image it is 0"


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _opened_java() -> Iterator[None]:
    """Let Java programs that are begun meanwhile see what SPICE needs; Java 8 knows no such option."""
    told = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', told)
    name, before = "JAVA_TOOL_OPTIONS", os.environ.get("JAVA_TOOL_OPTIONS")
    if version is not None and int(version[1]) >= 9:
        opened = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED]
        os.environ[name] = " ".join([*([before] if before else []), *opened])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

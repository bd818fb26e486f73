"""Scoring captions with a table of metrics; metrics that are not available are reported, the others are computed."""

from __future__ import annotations

import math
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from .ptb_tokenizer import java_problem, tokenize

Words = dict[int, list[str]]
_PACKAGE = "pycocoevalcap"
_SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# Java packages that SPICE's serializer accesses by reflection, which Java 16 and later forbid unless they are opened.
_OPENED_PACKAGES = ("lang", "math", "net", "text", "util", "util.concurrent")


class Unavailable(RuntimeError):
    """A metric cannot be computed on this machine; the message says why and what to do."""


class Metric(NamedTuple):
    """A scorer of pycocoevalcap.

    Attributes:
        titles: names of its scores.
        scorer: "module:class".
        arguments: arguments of the class.
        needs_java: whether it runs a Java program.
        prepare: prepares what else it needs, or raises Unavailable; the argument says whether it may download.
    """

    titles: tuple[str, ...]
    scorer: str
    arguments: tuple[Any, ...] = ()
    needs_java: bool = False
    prepare: Callable[[bool], None] = lambda download: None


@dataclass(frozen=True)
class Scores:
    """Scores of captions.

    Attributes:
        scores: metric -> score of all images. BLEU, METEOR, ROUGE-L and SPICE are in 0..1, CIDEr is in 0..10.
        not_computed: metric -> why it was not computed, and what to do.
        images: number of scored images.
        tokenizer: description of the tokenizer.
        per_image: key of an image -> metric -> score.
        notes: remarks on how to read the scores.
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
        references: key of an image -> its reference captions; the same keys.
        metrics: names in METRICS; by default all.
        tokenizer: "ptb" (Stanford's, needs Java), "python", or "auto" ("ptb" if Java works, else "python").
        download: whether SPICE may download the model of its parser (about 400 MB, once) if it is missing.

    Raises:
        ValueError: the keys differ, an image has no reference, there are no captions, or a name is unknown.
        RuntimeError: the tokenizer "ptb" was requested and does not work.
        ImportError: pycocoevalcap is not installed.

    Example:
        >>> from mindone.pipelines.image_to_text.evaluation import score_captions
        >>> result = score_captions({"a": "a red dog"}, {"a": ["a red cat"]}, ["bleu"], "python")
        >>> round(result.scores["BLEU-1"], 3)
        0.667
    """
    _check(predictions, references)
    names = list(METRICS) if metrics is None else [_check_name(name) for name in metrics]
    _check_installed()
    keys = list(predictions)
    reference_words, prediction_words, used_tokenizer = _tokenize_all(predictions, references, tokenizer)
    java = java_problem() if any(METRICS[name].needs_java for name in names) else None
    scores: dict[str, float] = {}
    each: list[dict[str, float]] = [{} for _ in keys]
    not_computed: dict[str, str] = {}
    for name in names:
        metric = METRICS[name]
        try:
            if metric.needs_java and java is not None:
                raise Unavailable(java)
            metric.prepare(download)
            for title, score, own in _compute(metric, reference_words, prediction_words):
                scores[title] = score
                for row, value in zip(each, own, strict=True):
                    row[title] = value
        except Unavailable as reason:
            not_computed.update(dict.fromkeys(metric.titles, str(reason)))
    per_image = dict(zip(keys, each, strict=True))
    notes = tuple(_notes(prediction_words, names))
    return Scores(scores, not_computed, len(keys), used_tokenizer, per_image, notes)


def _tokenize_all(
    predictions: Mapping[str, str], references: Mapping[str, Sequence[str]], tokenizer: str
) -> tuple[Words, Words, str]:
    """Return the tokenized references and predictions by number; one call for both, so that Java starts once."""
    count = len(predictions)
    captions: dict[int, Sequence[str]] = {n: [text] for n, text in enumerate(predictions.values())}
    captions |= {count + n: references[key] for n, key in enumerate(predictions)}
    words, used_tokenizer = tokenize(captions, tokenizer)
    return {n: words[count + n] for n in range(count)}, {n: words[n] for n in range(count)}, used_tokenizer


def _compute(metric: Metric, references: Words, predictions: Words) -> Iterator[tuple[str, float, list[float]]]:
    """Yield the scores of a scorer: title, score of all images, and scores of the images in order.

    Raises:
        Unavailable: the scorer failed for any reason; most scorers are external programs.
    """
    module, _, name = metric.scorer.partition(":")
    try:
        with _open_java_packages() if metric.needs_java else nullcontext():
            scorer = getattr(import_module(module), name)(*metric.arguments)
            quiet = {"verbose": 0} if name == "Bleu" else {}
            total, own = scorer.compute_score(references, predictions, **quiet)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise Unavailable(_failure(name, error)) from error
    totals, owns = (total, own) if len(metric.titles) > 1 else ([total], [own])
    for title, score, values in zip(metric.titles, totals, owns, strict=True):
        numbers = [float(value["All"]["f"] if isinstance(value, Mapping) else value) for value in values]
        if not math.isfinite(score):
            raise Unavailable(f"{name} returned {score}: one of the captions has nothing that it can score")
        yield title, float(score), numbers


def _failure(name: str, error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return f"{name}'s Java program exited with status {error.returncode}; its output is above"
    return f"{name} failed: {type(error).__name__}: {error}"


def _prepare_spice(download: bool) -> None:
    """Ensure that the model of SPICE's parser exists; pycocoevalcap does not include it."""
    spice = import_module(f"{_PACKAGE}.spice.get_stanford_models")
    folder = Path(str(spice.__file__)).parent / "lib"
    missing = [name for name in _SPICE_JARS if not (folder / name).is_file()]
    command = f"python -m {_PACKAGE}.spice.get_stanford_models"
    what = "SPICE needs the model of Stanford CoreNLP 3.6.0 (about 400 MB)"
    if not missing:
        return
    if len(missing) < len(_SPICE_JARS):
        raise Unavailable(
            f"{what}, but {folder} contains only part of it: delete {_SPICE_JARS[0]} there, then run {command}"
        )
    if not download:
        raise Unavailable(f"{what}, which is missing, and downloads are disabled: run {command}")
    try:
        spice.get_stanford_models()
    except Exception as error:
        raise Unavailable(
            f"{what}, which could not be downloaded ({error}): run {command} on a machine with a connection, and copy "
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
            raise ValueError(
                f"{len(missing)} images have no {what}, for example {missing[0]!r}: pass the images that have both"
            )
    empty = [key for key, texts in references.items() if isinstance(texts, str) or not texts]
    if empty:
        raise ValueError(f"the references of {empty[0]!r} are {references[empty[0]]!r}: expected a list of captions")


def _check_installed() -> None:
    if find_spec(_PACKAGE) is None:
        raise ImportError(f"scores need {_PACKAGE}: install it with pip install 'mindone-share4v[score]'")


def _check_name(name: str) -> str:
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return name


def _notes(predictions: Words, names: Sequence[str]) -> Iterator[str]:
    empty = sum(not texts[0] for texts in predictions.values())
    if empty:
        yield f"{empty} captions have no words and score 0"
    if "cider" in names and len(predictions) == 1:
        yield "CIDEr weights words by how few images have them, so with one image it is 0"


@contextmanager
def _open_java_packages() -> Iterator[None]:
    """Open the packages that SPICE needs in the Java programs that start meanwhile; Java 8 has no such option."""
    output = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', output)
    name, before = "JAVA_TOOL_OPTIONS", os.environ.get("JAVA_TOOL_OPTIONS")
    if version is not None and int(version[1]) >= 9:
        opened = [f"--add-opens=java.base/java.{package}=ALL-UNNAMED" for package in _OPENED_PACKAGES]
        os.environ[name] = " ".join([*([before] if before else []), *opened])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before

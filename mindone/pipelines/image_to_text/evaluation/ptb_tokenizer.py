"""Tokenization for scoring: Stanford's PTBTokenizer, or equivalent rules that need no Java.

pycocoevalcap tokenizes with Stanford's Penn Treebank tokenizer, in lower case and without punctuation.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache

TOKENIZERS = ("auto", "ptb", "python")
PTB = "PTBTokenizer of Stanford CoreNLP 3.4.1 (Java)"
PYTHON = (
    "built-in, without Java: same as PTBTokenizer for ordinary text, but not for URLs, phone numbers and emoticons; "
    "scores can differ from published ones in the last digits"
)
_JAVA_SECONDS = 60

# PTBTokenizer's abbreviations, which keep their period; those of the second list only if capitalized.
_ABBREVIATIONS = (
    "jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri mr mrs ms dr prof rev gen col "
    "capt sgt lt cpl pvt adm maj cmdr comdr brig gov sen rep pres hon supt supts det msgr messrs mme mlle esq jr sr "
    "st mt ft ave blvd rd sq rt bldg co corp inc ltd bros assn asst dept univ intl natl mfg cie plc bhd pfc insp "
    "tel ext est etc vs al cf ph adj adv md calif ariz colo conn fla ga ind kan ky mich minn mo mont neb nev okla "
    "penn tenn va vt wis wyo ala"
)
_CAPITAL_ABBREVIATIONS = "Del Ill La Mass Miss Ore Pa Tex Wash Ark"
# A single letter with a period is an initial, unless one of these words follows, which starts a sentence.
_SENTENCE_STARTS = (
    "A|About|After|All|An|And|As|At|But|Here|However|He|Her|If|In|It|Its|Many|More|Now|Once|One|Other|Our|She|Since|So|"
    "Some|Such|That|The|Their|Then|There|These|They|This|Those|Two|We|What|When|While|Yet|You"
)
_LETTER = r"[^\W\d_]"
_TOKEN = re.compile(
    rf"""
    (?:https?://|www\.)[^\s"<>()]*[^\s"<>().,;:!?-]            # URLs
  | [\w.+-]+@[\w-]+\.[\w.-]*\w
  | [@\#]{_LETTER}\w*                                          # mentions and hashtags
  | (?<!\w)(?:{_LETTER}\.){{2,}}(?!\w)                         # U.S.
  | (?<![\w.])(?:(?i:{_ABBREVIATIONS.replace(" ", "|")})|{_CAPITAL_ABBREVIATIONS.replace(" ", "|")})\.(?!\w)
  | (?<![\w.'-]){_LETTER}\.(?!\w)(?!\s+(?:{_SENTENCE_STARTS})\b)     # John F. Kennedy
  | [Cc]\+\+
  | (?<!\w)'(?:\d\ds?|em|n'|tis|twas|til)(?!\w)                       # '60s, rock 'n' roll
  | (?<!\w)(?i:no|nos|art)\.(?=\s*\d)                          # No. 5
  | \d+:\d\d(?=[ap]m\b)                                        # 10:30am
  | (?<!\w)[-+]\d+(?:[.,]\d+)*(?!\w)                           # -5
  | \d+(?:[.,:/-]\d+)+(?:-?\w+(?:-\w+)*)?                      # 1,000  10:30  3-4  1/2
  | \w+(?:[-/.&]\w+|(?<!\d)'\w+)*                             # words; contractions are split below
  | \.{{2,}} | [?!]{{2,}} | -{{2,}} | `` | ''
  | \S
    """,
    re.VERBOSE,
)
_REWRITTEN = str.maketrans(
    {"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "«": '"', "»": '"', "–": " -- ", "—": " -- ", "…": " ... "}
    | {"½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ", "⅓": " 1/3 ", "⅔": " 2/3 "}
)
_RENAMED = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"} | {
    "€": "$",
    "£": "#",
    "¢": "cents",
}
_PUNCTUATION = frozenset(("'", "''", "``", '"', ".", "..", "...", "?", "!", ",", ":", "-", "--", ";"))
_SPLIT_WORDS = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "lemme": "lem me",
    "gimme": "gim me",
    "'tis": "'t is",
    "'twas": "'t was",
    "y'all": "y' all",
    "rock'n'roll": "rock 'n' roll",
}
_CONTRACTION = re.compile(r"(.*?\w)(n't|'(?:s|m|d|ll|re|ve))$")
_ASTRAL = re.compile("[\U00010000-\U0010ffff\u200d\ufe0f]")  # PTBTokenizer drops emoji


def java_problem() -> str | None:
    """Return why Java cannot be used and how to fix it, or None if it works."""
    java = shutil.which("java")
    install = "install a Java runtime (Debian: apt-get install default-jre-headless)"
    if java is None:
        return f"Java is not installed: {install}"
    try:
        done = subprocess.run([java, "-version"], capture_output=True, timeout=_JAVA_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return f"Java does not start ({error}): {install}"
    return f"Java does not start (exit status {done.returncode}): {install}" if done.returncode else None


def plain(text: str) -> str:
    """Return a caption on one line; PTBTokenizer would take unusual line ends for further captions."""
    text = text.encode("utf-8", "replace").decode()  # UTF-8 cannot encode lone surrogates
    return " ".join("".join(part if part.isprintable() else " " for part in text).replace("|||", " ").split())


def tokenize(captions: Mapping[int, Sequence[str]], tokenizer: str = "auto") -> tuple[dict[int, list[str]], str]:
    """Tokenize captions into lower-case words without punctuation, separated by spaces.

    Args:
        captions: number of the image -> its captions.
        tokenizer: "ptb" (needs Java), "python", or "auto" ("ptb" if it works, else "python").

    Returns:
        The tokenized captions, and a description of the tokenizer.

    Raises:
        ValueError: unknown tokenizer.
        RuntimeError: "ptb" was requested and does not work; the message gives the reason.
    """
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"unknown tokenizer {tokenizer!r}; known: {', '.join(TOKENIZERS)}")
    cleaned = {number: [plain(text) for text in texts] for number, texts in captions.items()}
    if tokenizer != "python":
        problem = java_problem()
        if problem is None:
            try:
                return _run_ptb(cleaned), PTB
            except (OSError, ValueError) as error:
                problem = f"PTBTokenizer failed ({error})"
        if tokenizer == "ptb":
            raise RuntimeError(problem)
    return {number: [ptb_words(text) for text in texts] for number, texts in cleaned.items()}, PYTHON


def _run_ptb(captions: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
    """Call pycocoevalcap's wrapper of PTBTokenizer, and check that it returned one line per caption."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    if not captions:
        return {}
    given = {number: [{"caption": text} for text in texts] for number, texts in captions.items()}
    # The wrapper loses a last line that is empty, so add a caption that is not.
    end = max(captions) + 1
    tokenized: dict[int, list[str]] = PTBTokenizer().tokenize({**given, end: [{"caption": "end"}]})
    last = tokenized.pop(end, None)
    counts = {number: len(texts) for number, texts in tokenized.items()}
    if last != ["end"] or counts != {number: len(texts) for number, texts in captions.items()}:
        raise ValueError("its numbers of input and output lines differ")
    return tokenized


def ptb_words(text: str) -> str:
    """Return the words of a caption as PTBTokenizer and pycocoevalcap's removal of punctuation do.

    Example:
        >>> ptb_words("The dog's owner (left) doesn't run at 10:30 a.m.")
        "the dog 's owner -lrb- left -rrb- does n't run at 10:30 a.m."
    """
    words: list[str] = []
    for found in _TOKEN.finditer(_ASTRAL.sub(" ", text.translate(_REWRITTEN))):
        token = found[0].lower()
        if token not in _PUNCTUATION:
            words += _split(_RENAMED.get(token, token))
    return " ".join(words)


@lru_cache(maxsize=4096)
def _split(token: str) -> tuple[str, ...]:
    if token in _SPLIT_WORDS:
        return tuple(_SPLIT_WORDS[token].split())
    contraction = _CONTRACTION.fullmatch(token)
    return contraction.groups() if contraction else (token,)

"""`share4v audit`: count the words of captions; prints tables or JSON, and fails if a limit is exceeded."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..printing import one_line, print_error, print_json, print_text
from .common import usage_error
from .exit_status import DONE, SOME_FAILED

_TITLES = {
    "words": "words",
    "pairs": "phrases of two words",
    "triples": "phrases of three words",
    "tags": "tags",
    "openings": "openings",
    "endings": "endings",
}
_MAX_SHOWN = 5  # sources and problems


def run(arguments: Namespace) -> int:
    """Audit the captions, print the result, and return the exit status."""
    from mindone.pipelines.image_to_text.dataset.audit import audit_captions, caption_texts, exceeded, parse_limit

    unread: list[str] = []
    budgets = None
    try:
        limits = [parse_limit(text) for text in arguments.fail_above]
        if arguments.top < 1:
            raise ValueError(f"--top must be at least 1, got {arguments.top}")
        if arguments.fit:
            from mindone.pipelines.image_to_text.dataset.rules.token_budget import TokenBudget, TokenBudgets

            budgets = TokenBudgets([TokenBudget.parse(text) for text in arguments.fit], arguments.local_files_only)
        elif any(one.measure == "over-budget" for one in limits):
            raise ValueError("--fail-above over-budget= needs a tokenizer and a number of tokens: add --fit")
        if arguments.trigger is None:
            needs = next((one.measure for one in limits if one.measure in ("no-trigger", "near-misses")), None)
            if needs is not None:
                raise ValueError(f"--fail-above {needs}= needs the trigger word: add --trigger WORD")
        texts = caption_texts(
            arguments.out, arguments.caption_column, arguments.include, arguments.exclude, unread.append
        )
        audit = audit_captions(texts, arguments.trigger, budgets)
    except (ValueError, OSError, ImportError) as error:
        return usage_error(arguments, error)
    over = exceeded(audit, limits)
    result = {**audit.to_json(arguments.top, arguments.function_words), "exceeded": over}
    if arguments.json:
        print_json(result)
    else:
        print_text("\n".join(_lines(result)))
    for line in (*unread, *over):
        print_error(one_line(line))
    return SOME_FAILED if over else DONE


def _lines(result: Mapping[str, Any]) -> Iterator[str]:
    length = result["length"]
    yield f"{result['captions']:,} captions, {result['empty']:,} empty, {result['missing']:,} missing"
    yield from (f"  {one_line(problem)}" for problem in result["problems"][:_MAX_SHOWN])
    if length:
        middle = f"median {length['median']}, mean {length['mean']}"
        yield f"words of a caption: {length['min']} to {length['max']}, {middle}"
    for budget, tokens in result.get("tokens", {}).items():
        counts = f"{tokens['min']} to {tokens['max']} tokens, median {tokens['median']}"
        yield f"{one_line(budget)}: {counts}; over the budget: {tokens['over']:,} ({_percent(tokens['share'])})"
    if "trigger" in result:
        yield from _trigger_lines(result["trigger"], result["captions"])
    for kind, title in _TITLES.items():
        yield from _table(title, result[kind])
    near = result["near_duplicates"]
    yield ""
    groups = f"{near['captions']:,} captions in {near['groups']:,} groups"
    yield f"near-duplicates of an earlier caption: {groups}; identical: {near['identical']:,}"
    for group in near["largest"]:
        yield f"  {group['count']:>7,}  {_short(group['text'])}  {_short(', '.join(group['sources']))}"


def _trigger_lines(trigger: Mapping[str, Any], captions: int) -> Iterator[str]:
    name, count = one_line(trigger["trigger"]), trigger["captions"]
    yield f"{name}: in {count:,} captions ({_percent(trigger['share'])}), first in {trigger['first']:,}"
    if count < captions:
        sources = ", ".join(map(one_line, trigger["missing"][:_MAX_SHOWN]))
        yield f"  missing in {captions - count:,}: {sources}{', ...' if captions - count > _MAX_SHOWN else ''}"
    for miss in trigger["near_misses"]:
        yield f"  near miss: {one_line(miss['term'])}, {miss['captions']:,} captions, {miss['distance']} edits"


def _table(title: str, entries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield ""
    yield f"{title}:" if entries else f"{title}: none"
    for entry in entries:
        error = f"  (at most {entry['at_most']:,})" if "at_most" in entry else ""
        yield f"  {entry['captions']:>7,}  {_percent(entry['share']):>6}  {_short(entry['term'])}{error}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= 80 else f"{line[:77]}..."

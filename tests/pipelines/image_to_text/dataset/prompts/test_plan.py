"""Prompt plans: variables, weights, files, and draws that no run, machine or order changes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindone.pipelines.image_to_text.dataset.prompts.plan import Prompt, PromptPlan, read_prompt_file
from mindone.pipelines.image_to_text.dataset.prompts.styles import STYLES
from mindone.pipelines.image_to_text.dataset.prompts.variables import VariableError, fill, variables_of


@dataclass(frozen=True)
class Input:
    key: str = "cats/tom"
    source: str = "photos/cats/tom.jpg"
    columns: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("source", "filename", "stem", "directory"),
    [
        ("photos/cats/tom.jpg", "tom.jpg", "tom", "cats"),
        ("tom.tar.gz", "tom.tar.gz", "tom.tar", ""),
        ("shards/a-0001.tar::dogs/rex.webp", "rex.webp", "rex", "dogs"),
        ("table.parquet::17", "17", "17", ""),
    ],
)
def test_variables_that_every_record_has(source: str, filename: str, stem: str, directory: str) -> None:
    item = Input("some/key", source)
    assert fill("{filename}|{stem}|{directory|}|{key}", item) == f"{filename}|{stem}|{directory}|some/key"


def test_columns_are_variables_and_go_first() -> None:
    item = Input(columns={"artist": " Klee ", "year": 1922.0, "tags": ["blue", None, "sea"], "filename": "own", "n": 0})
    assert fill("{artist}, {year}, {tags}, {filename}, {n}", item) == "Klee, 1922, blue, sea, own, 0"
    assert fill("{ artist } {{artist}}", item) == "Klee {artist}"


def test_a_value_is_text_and_never_read_again() -> None:
    assert fill("{title}", Input(columns={"title": "{key} {"})) == "{key} {"


def test_defaults_stand_in_for_what_is_missing_or_empty() -> None:
    item = Input(columns={"artist": None, "nan": float("nan"), "blank": "  "})
    assert fill("{artist|nobody} {nan|x} {blank|y} {other|z}{other|}", item) == "nobody x y z"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "{titel}",
            r"record 'cats/tom': unknown variable {titel}; known: filename, stem, directory, key, title\. Did you",
        ),
        ("{artist}", r"record 'cats/tom': {artist} is empty there; write {artist\|some text}"),
        ("{picture}", r"the value of {picture} contains <image>"),
        ("a } b", r"a lone '}' at 2: write }} for a brace\. To have braces .*: 'a }} b'\."),
        ("{}", r"has {} without a name"),
        ("{a{b}}", r"a lone '{' at 0"),
    ],
)
def test_prompts_that_will_not_do(prompt: str, message: str) -> None:
    columns = {"title": "x"} if "titel" in prompt else {"title": "x", "artist": "", "picture": "see <image>"}
    with pytest.raises(VariableError, match=message):
        fill(prompt, Input(columns=columns))


@given(st.text())
def test_escaped_text_comes_out_as_it_was(text: str) -> None:
    escaped = text.replace("{", "{{").replace("}", "}}")
    assert fill(escaped, Input()) == text and variables_of(escaped) == frozenset()


def test_a_plan_is_checked_before_the_first_picture() -> None:
    plan = PromptPlan.from_options(prompts=["Is this {lable}?", "{mood|any} mood"])
    with pytest.raises(VariableError, match=r"unknown variable {lable}; known: .*label\. Did you mean {label}\?"):
        plan.check(["label"])
    with pytest.raises(VariableError, match=r"{mood\|any}, which stands for the value of 'mood', or for 'any' where"):
        plan.check(["lable"])
    plan.check(["lable"], allows_absent=True)
    plan.check(["lable", "mood"])
    assert plan.variables == {"lable", "mood"}


# Draws

PLAN = PromptPlan((Prompt("a", 1), Prompt("b", 2), Prompt("c", 5)), seed=7)


def test_prompts_are_drawn_by_their_weights() -> None:
    counts = Counter(PLAN.texts(Input(f"key-{number}"))[0] for number in range(8000))
    expected = {"a": 1000, "b": 2000, "c": 5000}
    chi_squared = sum((counts[text] - count) ** 2 / count for text, count in expected.items())
    assert chi_squared < 13.8  # two degrees of freedom: 1 in 1000, and the draws are always the same


def test_draws_are_the_same_in_another_process_and_written_down_here() -> None:
    """A job may be resumed by another version of Python, so the first draws are part of the contract."""
    program = (
        "from mindone.pipelines.image_to_text.dataset.prompts.plan import Prompt, PromptPlan\n"
        "from types import SimpleNamespace as Input\n"
        "plan = PromptPlan((Prompt('a', 1), Prompt('b', 2), Prompt('c', 5)), seed=7)\n"
        "print(''.join(plan.texts(Input(key=f'key-{n}', source='', columns={}))[0] for n in reversed(range(24))))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = "".join(PLAN.texts(Input(f"key-{number}"))[0] for number in range(24))
    assert done.stdout.strip()[::-1] == here == "ccbcaccccbcbacccacbcccbc"


def test_another_seed_draws_otherwise() -> None:
    other = PromptPlan(PLAN.prompts, seed=8)
    assert [PLAN.texts(Input(str(n))) for n in range(50)] != [other.texts(Input(str(n))) for n in range(50)]


@given(st.text(), st.integers(0, 9), st.integers(1, 7))
def test_captions_of_a_picture_differ_in_prompt_while_they_can(key: str, seed: int, captions: int) -> None:
    plan = PromptPlan(PLAN.prompts, captions=captions, seed=seed)
    texts = plan.texts(Input(key))
    assert len(texts) == plan.count == captions
    for start in range(0, captions, 3):
        part = texts[start : start + 3]
        assert len(set(part)) == len(part)
    assert plan.repeats == (captions > 3)
    longer = PromptPlan(PLAN.prompts, captions=captions + 1, seed=seed)
    assert longer.texts(Input(key))[:captions] == texts  # one caption more changes no other


def test_every_prompt_in_turn() -> None:
    plan = PromptPlan(PLAN.prompts, every=True)
    assert plan.texts(Input("x")) == ("a", "b", "c") and plan.count == 3 and not plan.repeats
    with pytest.raises(ValueError, match="makes 3 captions, but 2 are wanted"):
        PromptPlan(PLAN.prompts, captions=2, every=True)


def test_keys_that_are_no_utf8_can_be_drawn_for() -> None:
    assert PLAN.texts(Input("caf\udce9"))[0] in "abc"


# Where prompts come from


def test_with_nothing_said_the_default_style_is_asked() -> None:
    question = PromptPlan.from_options().questions(Input())[0]
    assert question.text == "Describe this image" and question.style is STYLES["default"]


def test_styles_prompts_and_files_go_in_one_pot(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text(
        "\ufeff# a comment\n\n3 | What is {stem}?\n0.5\tTwo\\nlines\n2|@one-sentence\n@tags\nLeft | right\n",
        encoding="utf-8",
    )
    plan = PromptPlan.from_options(["short"], ["Why?"], [file], captions=2, seed=3)
    assert [(prompt.text, prompt.weight, prompt.style) for prompt in plan.prompts] == [
        (STYLES["short"].prompt, 1, "short"),
        ("Why?", 1, None),
        ("What is {stem}?", 3, None),
        ("Two\nlines", 0.5, None),
        (STYLES["one-sentence"].prompt, 2, "one-sentence"),
        (STYLES["tags"].prompt, 1, "tags"),
        ("Left | right", 1, None),
    ]
    assert plan.styles == (STYLES["short"], STYLES["one-sentence"], STYLES["tags"])
    described = plan.to_json()
    assert [tuple(row.values()) for row in described.pop("prompts")] == [
        (prompt.text, prompt.weight, prompt.style) for prompt in plan.prompts
    ]
    assert described == {"captions": plan.captions, "every": plan.every, "seed": plan.seed}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 | Why?", "line 2: the prompt 'Why\\?' has the weight 0.0: expected a number above 0"),
        ("-1 | Why?", "line 2: .*weight -1.0"),
        ("nan | Why?", "line 2: .*weight nan"),
        ("2,5 | Why?", "line 2: the weight '2,5' is no number: write it as 2.5"),
        ("3 | ", "line 2: a prompt is empty"),
        ("@shrot", "line 2: unknown caption style 'shrot'; .*Did you mean 'short'"),
        ("What {is", "line 2: .*lone '{'"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(f"# first\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_prompt_file(tmp_path / "prompts.txt")


def test_files_that_hold_no_prompt(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"empty.txt: no prompts in it"):
        read_prompt_file(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("Qu'est-ce que c'est, très précisément?".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin.txt: not UTF-8 text, at byte"):
        read_prompt_file(tmp_path / "latin.txt")


def test_plans_that_will_not_do() -> None:
    with pytest.raises(ValueError, match="there is no prompt"):
        PromptPlan(())
    with pytest.raises(ValueError, match="captions must be 1 or more, got 0"):
        PromptPlan((Prompt("a"),), captions=0)

"""Audit of captions: counts equal those of the package caption-audit, and every format gives the same captions."""

from __future__ import annotations

import csv
import json
import random
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import pytest
from caption_audit import checks, loader
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from mindone.pipelines.image_to_text.dataset.audit import (
    CaptionAudit,
    SourceError,
    audit_captions,
    caption_texts,
    exceeded,
    parse_limit,
)
from mindone.pipelines.image_to_text.dataset.audit.near_captions import NearCaptions
from mindone.pipelines.image_to_text.dataset.audit.terms import terms_of, words_of
from mindone.pipelines.image_to_text.dataset.audit.trigger_word import edit_distance
from mindone.pipelines.image_to_text.dataset.state.records import Record, to_line
from mindone_share4v.cli import main

VIEWS = {"unigram": "words", "bigram": "pairs", "trigram": "triples", "segment": "tags"}
CAPTIONS = [
    "ohwx woman, red silk scarf, black top, standing in a café.",
    "ohwx woman, red silk scarf, smiling. She's looking at the T-shirt; it’s “new”.",
    "A photo of ohwx woman wearing a red silk scarf, and a hat.\nSecond line",
    "owhx woman, blue coat, standing in a café.",
    "ohwx woman, red silk scarf, black top, standing in the café.",
    "ohwx woman, red silk scarf, black top, standing in a café",
    "a dog - brown_and-white – runs 3.5 km at 10:30 on the beach...",
]


def generated(count: int, seed: int = 0) -> list[str]:
    """Captions of a small vocabulary, some of which differ from an earlier one in one word only."""
    rng = random.Random(seed)
    vocabulary = [f"word{number}" for number in range(400)]
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.3:
            words = rng.choice(texts).split()
            if rng.random() < 0.7:
                words[rng.randrange(len(words))] = rng.choice(vocabulary)
            texts.append(" ".join(words))
        else:
            texts.append(" ".join(rng.choices(vocabulary, k=rng.randint(15, 40))))
    return texts


def folder_of(tmp_path: Path, texts: Sequence[str]) -> Path:
    folder = tmp_path / "captions"
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:04d}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize("texts", [CAPTIONS, generated(120)], ids=["written", "generated"])
def test_counts_equal_those_of_caption_audit(tmp_path: Path, texts: list[str]) -> None:
    folder = folder_of(tmp_path, texts)
    audit = audit_captions(caption_texts(folder), trigger="ohwx")
    captions, _, _ = loader.scan_dir(str(folder))
    options = Namespace(ngram_max=3, info_threshold=0.0, warn_threshold=1, critical_threshold=1, no_stopwords=True)
    theirs = checks.check_document_frequency(captions, "ohwx", [], options)
    expected: dict[str, dict[str, int]] = {kind: {} for kind in VIEWS.values()}
    for row in theirs["rows"]:
        for view in row["views"]:
            if view in VIEWS:
                expected[VIEWS[view]][row["term"]] = row["df"]
    for kind, counts in expected.items():
        assert dict(getattr(audit, kind).most_common()) == counts, kind
    trigger = checks.check_trigger(captions, "ohwx", [])
    assert audit.trigger is not None
    assert (audit.trigger.present, dict(audit.trigger.positions)) == (trigger["present"], trigger["positions"])
    misses = audit.trigger.near_misses(audit.words, audit.pairs)
    assert [(miss.term, miss.distance, miss.captions) for miss in misses] == [
        (one["token"], one["distance"], one["df"]) for one in trigger["variants"]
    ]
    lengths = checks.check_distribution(captions)
    assert audit.to_json()["length"] | {"median": 0} == {
        **audit.to_json()["length"],
        **{name: lengths[name] for name in ("min", "max")},
        "mean": round(lengths["mean"], 2),
        "median": 0,
    }


def test_near_duplicates_are_those_of_all_pairs(tmp_path: Path) -> None:
    texts = generated(400, seed=3)
    captions, _, _ = loader.scan_dir(str(folder_of(tmp_path, texts)))
    theirs = checks.check_redundancy(captions)
    group_of = {caption.stem: {caption.stem} for caption in captions}
    pairs = [(pair["a"], pair["b"]) for pair in theirs["near"]]
    pairs += [(group["files"][0], other) for group in theirs["exact"] for other in group["files"][1:]]
    for one, other in pairs:
        joined = group_of[one] | group_of[other]
        group_of.update(dict.fromkeys(joined, joined))
    expected = {frozenset(group) for group in group_of.values() if len(group) > 1}
    assert len(expected) > 40
    near = NearCaptions()
    for number, text in enumerate(texts):
        terms = terms_of(text)
        near.add(terms.sequence, terms.words, text, f"{number:04d}")
    found = near.find(number=1000, max_sources=1000)
    near.close()
    assert {frozenset(group.sources) for group in found.largest} == expected
    assert found.captions == sum(len(group) - 1 for group in expected)
    assert found.identical == sum(len(group["files"]) - 1 for group in theirs["exact"])


def test_rare_terms_are_dropped_and_frequent_ones_stay_exact() -> None:
    with CaptionAudit(capacity=50) as audit:
        for number in range(3000):
            audit.add(f"a picture {number} of a {'cat' if number % 3 else 'dog'}", str(number))
        counts = {term: audit.words.count(term) for term in ("picture", "cat", "dog")}
        assert counts == {"picture": 3000, "cat": 2000, "dog": 1000}
        assert [audit.words.error(term) for term in counts] == [0, 0, 0]
        assert len(audit.words) <= 100 and 0 < audit.words.error("gone") == audit.words.max_error <= 3000 // 50


@given(st.text(max_size=60))
@settings(max_examples=100)
def test_any_text_has_terms(text: str) -> None:
    terms = terms_of(text)
    assert set(terms.words) == set(terms.sequence)
    assert {word for pair in terms.pairs for word in pair.split()} <= set(terms.words)


def test_combining_marks_belong_to_their_words() -> None:
    """Python's `\\w` leaves out vowel signs, which NFKC does not compose in most scripts."""
    texts = ["हिन्दी में बिल्ली", "แมวสีแดง ที่", "كِتَاب", "שָׁלוֹם"]
    assert [words_of(text) for text in texts] == [text.split() for text in texts]


def test_words_of_other_scripts() -> None:
    assert words_of("Ein Mädchen, Straße; 猫が2匹 кошка ﬁsh") == [
        *("ein", "mädchen", "straße", "猫", "が", "2", "匹", "кошка", "fish")
    ]


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edit_distance_is_that_of_caption_audit(one: str, other: str) -> None:
    from caption_audit.text import levenshtein

    assert edit_distance(one, other, 2) == min(levenshtein(one, other, 2), 3)


def write_txt(folder: Path, texts: list[str]) -> Path:
    for number, text in enumerate(texts):
        (folder / "sub").mkdir(exist_ok=True)
        (folder / "sub" / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


def write_caption(folder: Path, texts: list[str]) -> Path:
    for number, text in enumerate(texts):
        (folder / f"{number}.caption").write_bytes(b"\xef\xbb\xbf" + text.encode())
    return folder


def write_jsonl(folder: Path, texts: list[str]) -> Path:
    lines = [json.dumps({"file_name": f"{number}.png", "text": text}) for number, text in enumerate(texts)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def write_csv(folder: Path, texts: list[str]) -> Path:
    with (folder / "open_sora.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "text", "num_frames"])
        rows.writerows([f"{number}.png", text, 1] for number, text in enumerate(texts))
    return folder / "open_sora.csv"


def write_parquet(folder: Path, texts: list[str]) -> Path:
    datasets.Dataset.from_dict({"id": range(len(texts)), "caption": texts}).to_parquet(str(folder / "a.parquet"))
    return folder


def write_json_list(folder: Path, texts: list[str]) -> Path:
    values = [{"path": f"{number}.png", "cap": [text]} for number, text in enumerate(texts)]
    (folder / "plan.json").write_text(json.dumps(values))
    return folder / "plan.json"


def write_kohya(folder: Path, texts: list[str]) -> Path:
    values = {f"/data/{number}": {"caption": text, "tags": "x, y"} for number, text in enumerate(texts)}
    (folder / "meta.json").write_text(json.dumps(values, indent=1))
    return folder / "meta.json"


def write_coco(folder: Path, texts: list[str]) -> Path:
    notes = [{"image_id": number, "id": number, "caption": text} for number, text in enumerate(texts)]
    (folder / "coco.json").write_text(json.dumps({"info": {"year": 2014}, "images": [], "annotations": notes}))
    return folder / "coco.json"


def write_journal(folder: Path, texts: list[str]) -> Path:
    (folder / ".share4v").mkdir()
    records = [Record(number, str(number), f"{number}.png", (text,)) for number, text in enumerate(texts)]
    (folder / ".share4v" / "journal.jsonl").write_text("".join(map(to_line, records)), encoding="utf-8")
    return folder


WRITERS = [write_txt, write_caption, write_jsonl, write_csv, write_parquet, write_json_list, write_kohya, write_coco]


@pytest.mark.parametrize("write", [*WRITERS, write_journal], ids=lambda write: write.__name__)
def test_every_format_gives_the_same_captions(tmp_path: Path, write: Callable[[Path, list[str]], Path]) -> None:
    found = list(caption_texts(write(tmp_path, CAPTIONS)))
    assert Counter(one.text for one in found) == Counter(CAPTIONS)
    assert all(one.source and not one.problem for one in found)


def test_tables_beside_captions_are_named_and_patterns_choose(tmp_path: Path) -> None:
    write_jsonl(write_txt(tmp_path, CAPTIONS), ["in the table"])
    (tmp_path / "1.short.txt").write_text("short")
    lines: list[str] = []
    assert len(list(caption_texts(tmp_path, on_unread=lines.append))) == len(CAPTIONS) + 1
    assert lines == ["1 tables beside the caption files are not read: metadata.jsonl; to read one, give it itself"]
    assert [one.text for one in caption_texts(tmp_path, include=["*.short.txt"])] == ["short"]
    assert len(list(caption_texts(tmp_path, exclude=["*.short.txt"]))) == len(CAPTIONS)
    assert [one.text for one in caption_texts(tmp_path, include=["*.jsonl"])] == ["in the table"]


def test_what_has_no_caption_is_counted_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    rows = ['{"key": "1", "caption": "a cat"}', '{"key": "2", "caption": null, "error": "truncated"}', "{", "[]"]
    path.write_text("\n".join(rows))
    audit = audit_captions(caption_texts(path))
    assert (audit.captions, audit.missing) == (1, 3)
    assert audit.problems[0] == "captions.jsonl, line 2 (2): truncated".replace("captions.jsonl", str(path))


def test_the_prompt_of_a_failed_input_and_the_names_of_texts_are_no_captions(tmp_path: Path) -> None:
    folder = write_journal(tmp_path, ["a cat"])
    failed = Record(1, "1", "1.png", error="truncated", texts=("long", "short"))
    with (folder / ".share4v" / "journal.jsonl").open("a") as file:
        file.write(to_line(failed))
    assert [one.text for one in caption_texts(folder)] == ["a cat", None]
    table = tmp_path / "table.csv"
    table.write_text("image,caption,prompt,error\n1.png,a cat,Describe,\n2.png,,Describe,truncated\n")
    found = list(caption_texts(table))
    assert [one.text for one in found] == ["a cat", None] and found[1].problem == "truncated"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({}, {}, "no caption files; expected .txt"),
        ({"a.txt": "x"}, {"include": ["*.caption"]}, "no files that --include"),
        ({"a.jsonl": '{"label": 1, "file": "x"}'}, {}, "no column of captions among 'label', 'file'"),
        ({"a.csv": "file,text_en\n1,x\n"}, {"column": "textt_en"}, "Did you mean 'text_en'"),
    ],
)
def test_what_cannot_be_audited_is_an_error(
    tmp_path: Path, content: dict[str, str], options: dict[str, list[str]], message: str
) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message.replace("(", r"\(")):
        list(caption_texts(tmp_path, **options))  # type: ignore[arg-type]


def test_limits() -> None:
    texts = ["ohwx, a red hat", "ohwx, a red hat", "ohwx, a blue coat", "owhx", ""]
    with CaptionAudit(trigger="ohwx") as audit:
        for number, text in enumerate(texts):
            audit.add(text, str(number))

        def names(*limits: str) -> list[str]:
            return [line.partition(":")[0] for line in exceeded(audit, map(parse_limit, limits))]

        assert names("40%", "opening=0.4", "identical=20%", "near-duplicates=20%", "no-trigger=40%") == []
        assert names("39%", "opening=0.39", "identical=0", "no-trigger=0.3", "near-misses=0", "empty=0") == [
            *("term", "opening", "identical", "no-trigger", "near-misses", "empty")
        ]
        assert "'red' 2 (40 %)" in exceeded(audit, [parse_limit("0.1")])[0]
        assert "ohwx" not in exceeded(audit, [parse_limit("0.1")])[0]  # the trigger is meant to be frequent
    for wrong in ("110%", "x", "-1", "term=", "tem=1"):
        with pytest.raises(ValueError, match=r"expected a share|Did you mean 'term'"):
            parse_limit(wrong)


def test_tokens_of_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tokenizer of words, with a special token at each end."""
    tokenizer = Tokenizer(WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    (tmp_path / "encoder").mkdir()
    tokenizer.save(str(tmp_path / "encoder" / "tokenizer.json"))
    (tmp_path / "captions").mkdir()
    folder = write_txt(tmp_path / "captions", CAPTIONS)
    lengths = sorted(len(text.split()) + 2 for text in CAPTIONS)
    budget = f"{tmp_path / 'encoder'}:10"
    command = ["audit", str(folder), "--fit", budget, "--fail-above", "over-budget=10%"]
    assert main([*command, "--json"]) == 1
    counts = json.loads(capsys.readouterr().out)["tokens"][budget]
    assert (counts["min"], counts["median"], counts["max"]) == (lengths[0], lengths[3], lengths[-1])
    assert counts["over"] == sum(length > 10 for length in lengths) > 0
    assert main(command) == 1
    output = capsys.readouterr()
    assert f"over the budget: {counts['over']}" in output.out and "over-budget: more than 10 %" in output.err
    assert main(["audit", str(folder), "--fail-above", "over-budget=1%"]) == 2


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_txt(tmp_path, CAPTIONS)
    assert main(["audit", str(folder), "--trigger", "ohwx"]) == 0
    shown = capsys.readouterr().out
    assert "7 captions" in shown and "owhx" in shown and "red silk scarf" in shown
    assert main(["audit", str(folder), "--json", "--trigger", "ohwx", "--fail-above", "no-trigger=10%"]) == 1
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["trigger"]["captions"] == 5 and result["captions"] == 7
    assert result["exceeded"] == [output.err.strip().removeprefix("share4v: ")]
    assert main(["audit", str(folder), "--fail-above", "no-trigger=10%"]) == 2
    assert "add --trigger" in capsys.readouterr().err

"""The captioner on sharegpt4v-tiny: the caption of each input of a stream is the one that the pipeline gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from helpers.pictures import encoded, scene, write_folder

from mindone.models.share4v.processing.image_loading import load_image
from mindone.pipelines import pipeline
from mindone.pipelines.image_to_text.captioning import ImageToTextPipeline
from mindone.pipelines.image_to_text.dataset.api import caption_dataset
from mindone.pipelines.image_to_text.dataset.inference import captioner as captioner_module
from mindone.pipelines.image_to_text.dataset.inference.caption_cache import CaptionCache
from mindone.pipelines.image_to_text.dataset.inference.captioner import Captioner, CaptioningRun
from mindone.pipelines.image_to_text.dataset.inference.prefetch import Prefetcher, prepare
from mindone.pipelines.image_to_text.dataset.options import CaptioningSettings
from mindone.pipelines.image_to_text.dataset.prompts.plan import PromptPlan
from mindone.pipelines.image_to_text.dataset.readers import list_inputs
from mindone.pipelines.image_to_text.dataset.rules.text_rules import TextRules
from mindone.pipelines.image_to_text.dataset.state.records import Item, Record
from mindone.pipelines.image_to_text.dataset.state.tasks import Task
from mindone_share4v.cli import main


@pytest.fixture(scope="module")
def tiny() -> ImageToTextPipeline:
    return pipeline("image-to-text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("captioner") / "photos"
    write_folder(path, 12, broken=True, duplicates=4)
    return path


def tasks_of(items: Iterator[Item], *prompts: str) -> list[Task]:
    return [Task(item, prompts, (None,) * len(prompts)) for item in items]


def captioned(tiny: ImageToTextPipeline, tasks: list[Task], **settings: object) -> dict[int, Record]:
    captioner = Captioner(tiny, "tiny", CaptioningSettings(**{"batch_size": 5, **settings}))
    records = list(captioner.run(tasks))
    assert sorted(record.number for record in records) == [task.item.number for task in tasks]
    return {record.number: record for record in records}


def test_every_caption_equals_the_answer_of_the_pipeline(tiny: ImageToTextPipeline, folder: Path) -> None:
    tasks = tasks_of(list_inputs([str(folder)]), tiny.template().question)
    records = captioned(tiny, tasks)
    failed = [record for record in records.values() if record.error is not None]
    assert len(failed) == 20 and all("bad-" in record.source and record.error for record in failed)
    assert not any(record.captions for record in failed)
    for task in tasks:
        record = records[task.item.number]
        if record.error is None:
            answer = tiny.answer([tiny.template().question], [[task.item.path]], {})[0]
            assert record.captions == (answer.text,)
            assert record.tokens == (len(answer.token_ids),) and record.finish_reasons == (answer.finish_reason,)
            assert (record.width, record.height) == (64, 64) and len(record.sha256 or "") == 64


SCHEMA = {
    "type": "object",
    "properties": {"caption": {"type": "string"}, "circles": {"type": "integer", "minimum": 0}},
    "required": ["caption", "circles"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_captions_match_a_schema_in_any_batch_and_if_they_are_cut(
    tiny: ImageToTextPipeline, folder: Path, temperature: float
) -> None:
    tasks = tasks_of(list_inputs([str(folder)]), tiny.template().question)
    tasks = [task for task in tasks if "scene" in task.item.source][:6]
    settings = {"schema": SCHEMA, "max_new_tokens": 40, "temperature": temperature}
    records = captioned(tiny, tasks, **settings)
    good = [record for record in records.values() if record.error is None]
    for record in good:
        jsonschema.validate(json.loads(record.captions[0]), SCHEMA)
        assert record.tokens[0] <= 40 and "schema" not in record.settings and record.settings["schema_sha256"]
    assert "length" in {record.finish_reasons[0] for record in good}
    alone = captioned(tiny, tasks, **settings, batch_size=1)
    assert {number: one.captions for number, one in alone.items()} == {n: one.captions for n, one in records.items()}
    with pytest.raises(
        ValueError, match=r"a caption that matches the schema needs [0-9]+ tokens, but max_new_tokens is 5"
    ):
        Captioner(tiny, "tiny", CaptioningSettings(schema=SCHEMA, max_new_tokens=5))


def test_a_job_with_a_schema(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    out = tmp_path / "captions.jsonl"
    command = ["caption-dataset", str(folder / "part0" / "scene0000.png"), "--out", str(out), "--max-new-tokens", "40"]
    assert main([*command, "--schema", str(tmp_path / "schema.json")]) == 0
    record = json.loads(out.read_text())
    jsonschema.validate(json.loads(record["caption"]), SCHEMA)
    (tmp_path / "schema.json").write_text('{"type": "array"}')
    assert main([*command, "--schema", str(tmp_path / "schema.json")]) == 3  # the job has results with other settings


def test_equal_pictures_are_captioned_once(tiny: ImageToTextPipeline, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.png").write_bytes(encoded(scene(3)))
    tasks = tasks_of(list_inputs([str(tmp_path)]), "Describe this image")
    cache = CaptionCache(None)
    captioner = Captioner(tiny, "tiny", CaptioningSettings(batch_size=2), cache)
    joined = []
    batch = type(tiny.model.continuous_batch(1))
    join = batch.join
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "join", lambda self, unit, *rest: joined.append(unit) or join(self, unit, *rest))
        first = {record.captions for record in captioner.run(tasks)}
        again = {record.captions for record in captioner.run(tasks)}
    assert len(joined) == 1 and len(first) == 1 and first == again


def test_captions_do_not_depend_on_the_batch(tiny: ImageToTextPipeline, folder: Path) -> None:
    """Sampled ones do not either, because picture and question determine the seed."""
    tasks = tasks_of(list_inputs([str(folder)]), "Describe this image", "Describe this image")
    generation = {"temperature": 2.0, "max_new_tokens": 24}
    many = captioned(tiny, tasks, batch_size=7, **generation, seed=3)
    few = captioned(tiny, tasks[::3], batch_size=1, **generation, seed=3)
    other = captioned(tiny, tasks[::3], batch_size=1, **generation, seed=4)
    for number, record in few.items():
        assert record.captions == many[number].captions
    good = [number for number, record in few.items() if record.captions]
    assert any(few[number].captions != other[number].captions for number in good)
    assert any(len(set(many[number].captions)) == 2 for number in good)  # asked twice, sampled twice


def test_forced_beginning_forbidden_and_required_words(tiny: ImageToTextPipeline, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(encoded(scene(number)))
    tasks = tasks_of(list_inputs([str(tmp_path)]), "Describe this image")
    begun = captioned(tiny, tasks, begin_with="In the picture there are")
    assert all(record.captions[0].startswith("In the picture there are ") for record in begun.values())
    assert all(len(record.captions[0]) > 30 for record in begun.values())
    plain = captioned(tiny, tasks)
    word = "background"
    assert any(word in record.captions[0] for record in plain.values())
    without = captioned(tiny, tasks, rules=TextRules(forbidden_words=(word,)))
    assert not any(word in record.captions[0].lower() for record in without.values())
    wanting = captioned(tiny, tasks, rules=TextRules(required_words=("zebra",)), attempts=2)
    for number, record in wanting.items():
        assert "required word missing: zebra" in record.notes
        assert any(note.startswith("attempt ") and "of 2" in note for note in record.notes)
        assert record.captions == plain[number].captions  # the first of equally good attempts


def test_a_prompt_that_fills_the_context_fails_only_its_input(tiny: ImageToTextPipeline, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(scene(number)))
    items = list(list_inputs([str(tmp_path)]))
    tasks = tasks_of(iter(items), "Describe this image")
    tasks[1] = Task(items[1], ("Describe this image", "why " * 2000), (None, None))
    records = captioned(tiny, tasks)
    assert "the model's context" in (records[1].error or "") and not records[1].captions
    assert records[0].captions and records[2].captions


def test_the_rules_of_a_style_are_applied(tiny: ImageToTextPipeline, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(encoded(scene(1)))
    item = next(list_inputs([str(tmp_path)]))
    question = PromptPlan.from_options(styles=["one-sentence"]).questions(item)[0]
    record = captioned(tiny, [Task(item, (question.text,), ("one-sentence",))])[0]
    assert record.captions[0].count(".") <= 1


OVERFULL = "why " * 2000


def equal_items(folder: Path, count: int) -> list[Item]:
    """Inputs with the same picture."""
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encoded(scene(3)))
    return list(list_inputs([str(folder)]))


@pytest.fixture
def _few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the steps of a run, so that one that makes no progress fails instead of hanging."""
    rounds, fill_engine = iter(range(20_000)), CaptioningRun.fill_engine

    def counted(self: CaptioningRun, prefetcher: Prefetcher) -> None:
        assert next(rounds, None) is not None, "the run does not end"
        fill_engine(self, prefetcher)

    monkeypatch.setattr(CaptioningRun, "fill_engine", counted)


@pytest.mark.usefixtures("_few_rounds")
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_equal_inputs_get_their_caption_although_the_first_of_them_failed(
    tiny: ImageToTextPipeline, tmp_path: Path, batch_size: int
) -> None:
    """The first two inputs fail because of their second prompt, while their first caption is retried."""
    question = "Describe this image"
    items = equal_items(tmp_path, 5)
    seconds = [OVERFULL, OVERFULL, "What is it?", "What is it?", question]
    tasks = [Task(item, (question, second), (None, None)) for item, second in zip(items, seconds, strict=True)]
    settings = {"rules": TextRules(required_words=("zebra",)), "attempts": 3, "batch_size": batch_size}
    records = captioned(tiny, tasks, **settings)
    assert all("the model's context" in (records[number].error or "") for number in (0, 1))
    for number in (2, 3, 4):
        expected = captioned(tiny, [tasks[number]], **settings)[number]
        assert records[number].captions == expected.captions and len(expected.captions) == 2
        assert records[number].notes == expected.notes


@pytest.mark.usefixtures("_few_rounds")
def test_a_caption_follows_its_style_although_the_first_input_that_needed_it_failed(
    tiny: ImageToTextPipeline, tmp_path: Path
) -> None:
    question, style = "Describe this image", "one-sentence"
    first, second = equal_items(tmp_path, 2)
    tasks = [Task(first, (question, OVERFULL), (style, None)), Task(second, (question,), (style,))]
    assert captioned(tiny, [Task(second, (question,), (None,))])[1].captions[0].count(".") > 1  # the rules matter
    cache = CaptionCache(None)
    captioner = Captioner(tiny, "tiny", CaptioningSettings(batch_size=5), cache)
    records = {record.number: record for record in captioner.run(tasks)}
    assert records[0].error and records[1].captions == captioned(tiny, tasks[1:])[1].captions
    assert records[1].captions[0].count(".") == 1


def test_gaps_in_the_numbers_of_tasks_do_not_reduce_the_batch(
    tiny: ImageToTextPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if a few failures are retried. The limit on inputs after the oldest incomplete one still holds."""
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(encoded(scene(number)))
    items = list(list_inputs([str(tmp_path)]))
    batch, sizes = type(tiny.model.continuous_batch(1)), []
    step = batch.step
    monkeypatch.setattr(batch, "step", lambda self: sizes.append(len(self)) or step(self))
    monkeypatch.setattr(Prefetcher, "ready", property(lambda self: not self.exhausted))  # independent of the threads

    def sizes_with(gap: int) -> list[int]:
        sizes.clear()
        numbered = (replace(item, number=gap * item.number) for item in items)
        captioned(tiny, tasks_of(numbered, "Describe this image"), batch_size=4)
        return list(sizes)

    dense = sizes_with(1)
    assert max(dense) == 4 and sizes_with(1000) == dense
    monkeypatch.setattr(captioner_module, "MAX_BATCHES_AHEAD", 0)
    assert max(sizes_with(1)) == max(sizes_with(1000)) == 2


@pytest.mark.parametrize("batch_size", [2, 5])
def test_pictures_are_encoded_eight_at_a_time_and_equal_ones_once(
    tiny: ImageToTextPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    """Also with several questions about each picture, and with unreadable pictures between them."""
    write_folder(tmp_path / "photos", 24, broken=True, duplicates=4)
    features, runs = tiny.model._features, []
    encode = features._encode
    monkeypatch.setattr(features, "_encode", lambda pixels: runs.append(len(pixels)) or encode(pixels))
    monkeypatch.setattr(Prefetcher, "ready", property(lambda self: not self.exhausted))  # independent of the threads
    tiny.model.forget_values()
    tasks = tasks_of(list_inputs([str(tmp_path / "photos")]), "Describe this image", "What is there?")
    records = captioned(tiny, tasks, batch_size=batch_size)
    different = {record.sha256 for record in records.values() if record.error is None}
    assert len(different) == 24
    assert runs == [8, 8, 8]


def test_invalid_pixels_fail_only_their_picture(
    tiny: ImageToTextPipeline, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although several pictures are encoded together."""
    processor, tasks = tiny.processor.image_processor, tasks_of(list_inputs([str(folder)]), "Describe this image")
    wanted = captioned(tiny, tasks)
    preprocess, bad = type(processor).__call__, encoded(scene(5))

    def broken(self: object, image: object) -> np.ndarray:
        pixels = preprocess(self, image)
        return pixels * np.float32("nan") if np.array_equal(np.asarray(image), np.asarray(load_image(bad))) else pixels

    monkeypatch.setattr(type(processor), "__call__", broken)
    monkeypatch.setattr(Prefetcher, "ready", property(lambda self: not self.exhausted))
    records = captioned(tiny, tasks)
    failed = {number for number, record in records.items() if record.error and not wanted[number].error}
    assert failed and all("not all finite" in str(records[number].error) for number in failed)
    assert len({records[number].sha256 for number in failed}) == 1
    others = records.keys() - failed
    assert [records[number].captions for number in others] == [wanted[number].captions for number in others]


def test_a_question_that_cannot_be_encoded_fails_only_its_input(tiny: ImageToTextPipeline, folder: Path) -> None:
    """Such as `{filename}` if the name is not valid UTF-8."""
    first, second, *_ = (item for item in list_inputs([str(folder)]) if "bad-" not in item.source)
    asked = Task(first, ("What is caf\udce9?",), (None,)), Task(second, ("What is there?",), (None,))
    records = captioned(tiny, list(asked))
    assert "an unpaired surrogate" in str(records[first.number].error)
    assert records[second.number].captions


def test_failures_are_reported_as_they_occur(
    tiny: ImageToTextPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a thousand of them waited in memory for the journal, a crash would lose them."""
    for number in range(300):
        (tmp_path / f"{number:03d}.png").write_bytes(b"")
    monkeypatch.setattr(Prefetcher, "ready", property(lambda self: not self.exhausted))
    taken: list[int] = []
    tasks = (task for task in tasks_of(list_inputs([str(tmp_path)]), "What is there?") if not taken.append(0))
    records = Captioner(tiny, "tiny", CaptioningSettings(batch_size=2)).run(tasks)
    assert next(records).error is not None
    assert len(taken) < 150
    assert len(list(records)) == 299


def test_equal_pictures_that_wait_for_a_caption_share_their_pixels(tiny: ImageToTextPipeline, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(encoded(scene(3)))
    tasks = tasks_of(list_inputs([str(tmp_path)]), "What is there?")
    run = CaptioningRun(Captioner(tiny, "tiny", CaptioningSettings(batch_size=2)), iter(tasks))
    for task in tasks:
        run.start(prepare(task, run.captioner.encoder))
    assert len(run.incomplete) == 20 and run.engine.waiting == 1
    images = {id(one.images): one.images for one in run.incomplete.values()}
    assert len(images) == 1
    late = prepare(replace(tasks[0], item=replace(tasks[0].item, number=99)), run.captioner.encoder)
    run.engine.step()  # encodes the picture
    run.start(late)
    assert run.incomplete[99].images is run.incomplete[tasks[0].item.number].images is next(iter(images.values()))
    assert run.incomplete[99].images.features is not None and run.incomplete[99].images.pixel_values is None


def test_a_caption_that_is_completed_together_with_the_failure_of_its_input(
    tiny: ImageToTextPipeline, tmp_path: Path
) -> None:
    """The second prompt fails in the step in which the first caption, of one token, is completed."""
    items = equal_items(tmp_path, 2)
    tasks = [Task(items[0], ("What is it?", OVERFULL), (None, None)), Task(items[1], ("Why?",), (None,))]
    records = captioned(tiny, tasks, max_new_tokens=1)
    assert "the model's context" in (records[0].error or "") and records[1].captions


def test_seconds_count_from_the_first_caption_of_an_input(tiny: ImageToTextPipeline, tmp_path: Path) -> None:
    items = equal_items(tmp_path, 3)
    tasks = [Task(item, ("Describe this image", "Why?"), (None, None)) for item in items]
    records = captioned(tiny, tasks)
    assert records[0].seconds > 0  # generated
    assert records[1].seconds == records[2].seconds == 0  # copied from the first


def test_a_style_that_contradicts_the_settings_is_an_error_before_the_job_starts(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(scene(3)))
    plan = PromptPlan.from_options(styles=("default", "one-sentence"))
    tokens = CaptioningSettings(min_new_tokens=100)
    assert tokens.of_style("default")[0].items() >= {"max_new_tokens": 384, "min_new_tokens": 100}.items()
    with pytest.raises(ValueError, match=r"min_new_tokens is 100, .* 'one-sentence' ends a caption after 64 tokens"):
        caption_dataset(tmp_path, plan=plan, settings=tokens)
    loop = CaptioningSettings(rules=TextRules(required_words=("cat",)))
    assert loop.of_style("one-sentence")[1].required_words == ("cat",)
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]

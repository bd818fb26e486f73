"""The pipelines of mindone.transformers 0.5.0 for Share4V, compared with this project's own."""

from __future__ import annotations

import base64
import copy
import shutil
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import transformers
from helpers.llava import SMALL, Reference
from helpers.published_formats import TOWER, write_original
from PIL import Image

from mindone import pipelines
from mindone.models.share4v import Share4VConfig
from mindone.models.share4v.processing.image_loading import ImageNotFoundError

QUESTIONS = ("Describe this image", "What color is the background?")


def chat(*sources: dict[str, Any], question: str = QUESTIONS[0]) -> list[dict[str, Any]]:
    parts = [{"type": "image", **source} for source in sources]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_captions_equal_share4v_pipeline(captioner: Any, zoo_captioner: Any, scenes: list[str]) -> None:
    pictures = [Image.open(path) for path in scenes]
    expected = captioner(scenes)
    assert len({record[0]["generated_text"] for record in expected}) > 2
    assert zoo_captioner(scenes[0]) == expected[0]
    assert zoo_captioner(pictures[0]) == expected[0]
    for batch_size in (1, 2, 8):
        assert zoo_captioner(scenes, batch_size=batch_size) == expected
    assert zoo_captioner([scenes[0], pictures[1]], num_workers=2) == expected[:2]
    assert list(zoo_captioner(path for path in scenes)) == expected


def test_generator_is_read_one_batch_at_a_time(zoo_captioner: Any, scenes: list[str]) -> None:
    read: list[str] = []
    results = zoo_captioner((read.append(path) or path for path in scenes), batch_size=2, max_new_tokens=2)
    next(results)
    assert read == scenes[:2]


def test_prompts_and_settings_of_image_to_text(captioner: Any, zoo: Any, directory: str, scenes: list[str]) -> None:
    run = zoo.pipeline("image-to-text", model=directory)
    for question in QUESTIONS:
        assert run(scenes, prompt=question, batch_size=3) == captioner(scenes, prompt=question)
    assert run(scenes[0], prompt=QUESTIONS[1]) != run(scenes[0])
    assert run(scenes[0], prompt=captioner.processor.prompt(QUESTIONS[0], 1)) == captioner(scenes[0])
    assert run(scenes[0], max_new_tokens=4) == captioner(scenes[0], max_new_tokens=4)
    settings = {"do_sample": True, "temperature": 1.5, "seed": 3, "max_new_tokens": 12}
    assert run(scenes[0], generate_kwargs=settings) == captioner(scenes[0], generate_kwargs=settings)
    assert run(scenes[0], generate_kwargs={"num_beams": 3}) == captioner(scenes[0], generate_kwargs={"num_beams": 3})
    cut = run(scenes[0], generate_kwargs={"stop_strings": ["a"]})
    assert cut == captioner(scenes[0], generate_kwargs={"stop": ["a"]}) != captioner(scenes[0])
    config = transformers.GenerationConfig(max_new_tokens=5)
    assert run(scenes[0], generate_kwargs={"generation_config": config}) == captioner(scenes[0], max_new_tokens=5)
    assert run(scenes[0], conversation="share4v_v0") == captioner(scenes[0], conversation="share4v_v0")


def test_settings_of_a_pipeline_are_defaults(captioner: Any, zoo: Any, directory: str, scenes: list[str]) -> None:
    run = zoo.pipeline("image-to-text", model=directory, dtype="int8", max_new_tokens=3, batch_size=2)
    assert run.model.share4v.dtype == "int8"
    plain = zoo.pipeline("image-to-text", model=directory, max_new_tokens=3, model_kwargs={"local_files_only": True})
    assert plain(scenes) == captioner(scenes, max_new_tokens=3)
    assert plain(scenes[0], max_new_tokens=6) == captioner(scenes[0], max_new_tokens=6)


def test_answers_to_questions_equal_share4v_pipeline(answerer: Any, zoo_answerer: Any, scenes: list[str]) -> None:
    picture = Image.open(scenes[0])
    for question in QUESTIONS:
        expected = answerer(images=scenes[0], text=question)
        assert zoo_answerer(images=scenes[0], text=question) == expected
        assert zoo_answerer(images=picture, text=question) == expected
        assert zoo_answerer({"images": scenes[0], "text": question}) == expected
    alone = zoo_answerer(images=picture, text=QUESTIONS[0], return_full_text=False)
    assert alone == answerer(images=scenes[0], text=QUESTIONS[0], return_full_text=False)
    assert zoo_answerer(images=scenes[:2], text=list(QUESTIONS)) == answerer(images=scenes[:2], text=list(QUESTIONS))
    both = "<image>\n<image>\nDescribe this image"
    assert zoo_answerer(images=scenes[:2], text=both) == answerer(images=scenes[:2], text=both)
    asked = [{"images": path, "text": QUESTIONS[0]} for path in scenes]
    assert zoo_answerer(asked, batch_size=2) == answerer(asked, batch_size=2)
    assert list(zoo_answerer(one for one in asked)) == answerer(asked)
    assert zoo_answerer(text="Why?") == answerer(text="Why?")
    assert zoo_answerer(text=["Why?", "Where?"]) == answerer(text=["Why?", "Where?"])


def test_answers_to_chats_equal_share4v_pipeline(answerer: Any, zoo_answerer: Any, scenes: list[str]) -> None:
    encoded = base64.b64encode(Path(scenes[0]).read_bytes()).decode()
    expected = answerer(text=chat({"path": scenes[0]}))[0]["generated_text"][-1]
    assert expected["role"] == "assistant"
    for source in ({"path": scenes[0]}, {"url": scenes[0]}, {"image": Image.open(scenes[0])}, {"base64": encoded}):
        asked = chat(source)
        before = copy.copy(asked)
        assert zoo_answerer(text=asked) == [{"input_text": asked, "generated_text": [*asked, expected]}]
        assert asked == before
    assert zoo_answerer(chat({"path": scenes[0]}))[0]["generated_text"][-1] == expected
    assert zoo_answerer(images=[scenes[0]], text=chat({}))[0]["generated_text"][-1] == expected
    remote = [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
        {"type": "text", "text": QUESTIONS[0]},
    ]}]  # fmt: skip
    assert zoo_answerer(text=remote)[0]["generated_text"][-1] == expected
    chats = [chat({"path": path}) for path in scenes]
    for batch_size in (1, 3):
        assert zoo_answerer(text=chats, batch_size=batch_size) == answerer(text=chats)
    longer = [*chat({"path": scenes[0]}), expected, {"role": "user", "content": QUESTIONS[1]}]
    assert zoo_answerer(text=longer) == answerer(text=longer)


def test_partial_answer_is_continued(zoo_answerer: Any, scenes: list[str]) -> None:
    whole = zoo_answerer(text=chat({"path": scenes[0]}), return_full_text=False)[0]["generated_text"]
    ids = zoo_answerer.own.processor.tokenizer.encode(whole, add_bos=False)
    head = zoo_answerer.own.processor.decode(ids[:6])
    assert whole.startswith(head) and whole[len(head)] == " "
    for content in (head, [{"type": "text", "text": head}]):
        begun = [*chat({"path": scenes[0]}), {"role": "assistant", "content": content}]
        rest = zoo_answerer(text=begun, return_full_text=False)
        assert rest == [{"input_text": begun, "generated_text": whole[len(head) :]}]
        joined = zoo_answerer(text=begun)[0]["generated_text"]
        assert joined[:-1] == begun[:-1]
        said = joined[-1]["content"]
        assert (said if isinstance(said, str) else said[0]["text"]) == whole
    with pytest.raises(ValueError, match="nothing to answer"):
        zoo_answerer(text=begun, continue_final_message=False)


def test_settings_of_image_text_to_text(answerer: Any, zoo_answerer: Any, scenes: list[str]) -> None:
    asked = {"images": scenes[0], "text": QUESTIONS[0], "return_full_text": False}
    whole = answerer(**asked)[0]["generated_text"]
    for settings in ({"max_new_tokens": 4}, {"generate_kwargs": {"num_beams": 2, "max_new_tokens": 9}}):
        assert zoo_answerer(**asked, **settings) == answerer(**asked, **settings)
    word = whole.split()[2]
    assert zoo_answerer(**asked, stop_sequence=word)[0]["generated_text"] == whole[: whole.index(word)].strip()
    ids = zoo_answerer(images=scenes[0], text=QUESTIONS[0], return_tensors=True)[0]["generated_token_ids"]
    assert zoo_answerer.processor.decode(ids) == whole
    assert zoo_answerer(**asked, skip_special_tokens=False)[0]["generated_text"] == whole


def test_original_checkpoint(zoo: Any, vocabulary: Path, tmp_path: Path, scenes: list[str]) -> None:
    shape = replace(SMALL, text={**SMALL.text, "vocab_size": 400})
    main = write_original(Reference(shape), tmp_path)
    shutil.copy(vocabulary, main / "tokenizer.model")
    theirs, ours = {}, {}
    for task, call in (("image-to-text", {}), ("image-text-to-text", {"text": "Why?"})):
        options = {"max_new_tokens": 5, **({"images": scenes[0], **call} if call else {"inputs": scenes[0]})}
        theirs[task] = zoo.pipeline(task, model=str(main), model_kwargs={"vision_tower": str(tmp_path / TOWER)})(
            **options
        )
        ours[task] = pipelines.pipeline(task, model=main, vision_tower=tmp_path / TOWER)(**options)
    assert theirs == ours
    assert zoo.AutoConfig.from_pretrained(main).share4v == Share4VConfig.from_pretrained(main)


def test_saved_pipeline_is_a_checkpoint(captioner: Any, zoo_captioner: Any, tmp_path: Path, scenes: list[str]) -> None:
    zoo_captioner.save_pretrained(str(tmp_path))
    assert "custom_pipelines" not in (tmp_path / "config.json").read_text()
    assert pipelines.pipeline("image-to-text", model=tmp_path)(scenes[:2]) == captioner(scenes[:2])


def test_pipeline_from_a_loaded_model(captioner: Any, zoo: Any, directory: str, scenes: list[str]) -> None:
    model = zoo.AutoModelForImageTextToText.from_pretrained(directory)
    processor = zoo.AutoProcessor.from_pretrained(directory)
    run = zoo.pipeline("image-to-text", model=model, config=model.config)
    assert run(scenes[0]) == captioner(scenes[0])
    run = zoo.pipeline("image-text-to-text", model=model, config=model.config, processor=processor)
    assert (
        run(images=scenes[0], text=QUESTIONS[0], return_full_text=False)[0]["generated_text"]
        == (captioner(scenes[0])[0]["generated_text"])
    )
    with pytest.raises(ValueError, match="expected the processor that mindone"):
        zoo.pipeline("image-to-text", model=model, config=model.config, processor=object())


def test_errors_of_image_to_text_say_what_to_do(zoo_captioner: Any, scenes: list[str]) -> None:
    with pytest.raises(ImageNotFoundError, match=r"nowhere\.png"):
        zoo_captioner("nowhere.png")
    with pytest.raises(ValueError, match="prompt is a list"):
        zoo_captioner(scenes[0], prompt=["a", "b"])
    with pytest.raises(ValueError, match="Did you mean 'top_p'"):
        zoo_captioner(scenes[0], generate_kwargs={"topp": 0.5})
    with pytest.raises(ValueError, match="max_new_tokens is given twice"):
        zoo_captioner(scenes[0], max_new_tokens=3, generate_kwargs={"max_new_tokens": 3})
    with pytest.raises(ValueError, match="generation_config sets penalty_alpha, which is not supported"):
        config = transformers.GenerationConfig(penalty_alpha=0.6)
        zoo_captioner(scenes[0], generate_kwargs={"generation_config": config})
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        zoo_captioner(scenes, batch_size=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'promt'"):
        zoo_captioner(scenes[0], promt="Why?")
    with pytest.raises(ValueError, match="the download failed"):
        zoo_captioner("http://127.0.0.1:9/a.png", timeout=0.5)


def test_errors_of_image_text_to_text_say_what_to_do(zoo_answerer: Any, scenes: list[str]) -> None:
    with pytest.raises(ValueError, match="number of images in the chat messages"):
        zoo_answerer(images=scenes[:2], text=chat({}))
    with pytest.raises(ValueError, match="there are 2 texts: images must have one entry for each"):
        zoo_answerer(images=scenes[0], text=list(QUESTIONS))
    with pytest.raises(ValueError, match="has 1 <image> but 2 images"):
        zoo_answerer(images=scenes[:2], text="<image>\nWhy?")
    with pytest.raises(ValueError, match="`return_full_text` is mutually exclusive with `return_tensors`"):
        zoo_answerer(images=scenes[0], text="Why?", return_full_text=True, return_tensors=True)
    with pytest.raises(ValueError, match="clean_up_tokenization_spaces"):
        zoo_answerer(images=scenes[0], text="Why?", clean_up_tokenization_spaces=True)
    with pytest.raises(ValueError, match="unknown conversation template"):
        zoo_answerer(images=scenes[0], text="Why?", conversation="vicuna")


def test_url_is_downloaded_with_timeout(captioner: Any, zoo_captioner: Any, scenes: list[str]) -> None:
    picture = Path(scenes[0]).read_bytes()

    class Pictures(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_address[1]}/a.png"
        assert zoo_captioner(address, timeout=60) == captioner(scenes[0])
    finally:
        server.shutdown()
        server.server_close()

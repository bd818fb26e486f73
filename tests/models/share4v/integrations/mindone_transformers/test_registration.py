"""Effects of the registration on names, on other models and on this project's own pipelines."""

from __future__ import annotations

import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import transformers
from helpers.warm_processes import warm_python

from mindone.models.share4v import Share4VConfig, register_auto_classes
from mindone.models.share4v.hub import resolve

NAME = "sharegpt4v-tiny"


def test_short_name_works(zoo: Any, captioner: Any, scenes: list[str]) -> None:
    assert zoo.pipeline("image-to-text", model=NAME)(scenes[0]) == captioner(scenes[0])
    assert zoo.AutoConfig.from_pretrained(NAME).share4v == Share4VConfig.from_pretrained(resolve(NAME))
    processor = zoo.AutoProcessor.from_pretrained(NAME)
    assert processor(images=scenes[0])["pixel_values"].shape == (1, 3, 96, 96)
    assert transformers.AutoTokenizer.from_pretrained(NAME).encode("a") == processor.tokenizer.encode("a")
    assert zoo.AutoModelForImageTextToText.from_pretrained(NAME).config.name_or_path == NAME


class Hub(BaseHTTPRequestHandler):
    """Answers like the Hugging Face hub for a repository that does not exist."""

    def do_HEAD(self) -> None:
        self.send_response(401)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: Any) -> None: ...


def run_in_process(code: str, **environment: str) -> str:
    """Run code in a separate process."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "OMP_"))}
    done = subprocess.run(
        [warm_python(), "-c", code], capture_output=True, text=True, check=False, env={**own, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1]


def test_short_name_works_although_the_hub_does_not_know_it(
    captioner: Any, answerer: Any, tmp_path: Path, scenes: list[str]
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from mindone.models.share4v import register_auto_classes\nregister_auto_classes()\n"
        "import transformers\nfrom mindone.transformers import AutoModelForVision2Seq, AutoProcessor, pipeline\n"
        f"name, picture = {NAME!r}, {scenes[0]!r}\n"
        "processor = AutoProcessor.from_pretrained(name, local_files_only=True)\n"
        "tokenizer = transformers.AutoTokenizer.from_pretrained(name, local_files_only=True)\n"
        "assert tokenizer.encode('a') == processor.tokenizer.encode('a')\n"
        "assert AutoModelForVision2Seq.from_pretrained(name).generate(**processor(picture)).shape[0] == 1\n"
        "answered = pipeline('image-text-to-text', model=name)(picture, 'Why?', return_full_text=False)\n"
        "print([pipeline('image-to-text', model=name)(picture), answered])"
    )
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        printed = run_in_process(code, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path), NO_PROXY="127.0.0.1")
    finally:
        server.shutdown()
        server.server_close()
    assert printed == str([captioner(scenes[0]), answerer(scenes[0], "Why?", return_full_text=False)])


def test_read_only_cache_is_not_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(transformers.utils.hub, "TRANSFORMERS_CACHE", str(tmp_path / "file" / "hub"))
    register_auto_classes()
    assert "sharegpt4v-tiny cannot be linked into" in caplog.text and "hub.resolve" in caplog.text


def test_pipelines_do_not_import_mindone_transformers(scenes: list[str]) -> None:
    code = (
        "import sys\nfrom mindone.models.share4v import AutoModel, Share4V, Share4VProcessor, register_auto_classes\n"
        "from mindone.pipelines import pipeline\n"
        f"caption = pipeline('image-to-text')({scenes[0]!r}, max_new_tokens=3)\nassert caption[0]['generated_text']\n"
        "print(sorted({'transformers', 'mindone.transformers', 'torch'} & set(sys.modules)))"
    )
    # register_auto_classes is imported, but not called; it imports mindone.transformers only when it is called.
    assert run_in_process(code) == "[]"


def test_registering_again_has_no_effect(zoo: Any) -> None:
    from mindone.transformers.models.auto import configuration_auto, modeling_auto, processing_auto
    from mindone.transformers.pipelines import PIPELINE_REGISTRY

    tables = [
        configuration_auto.CONFIG_MAPPING._extra_content,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING._extra_content,
        modeling_auto.MODEL_FOR_VISION_2_SEQ_MAPPING._extra_content,
        processing_auto.PROCESSOR_MAPPING._extra_content,
        PIPELINE_REGISTRY.supported_tasks,
    ]
    before = [dict(table) for table in tables]
    register_auto_classes()
    assert [dict(table) for table in tables] == before


@pytest.fixture(scope="module")
def other(zoo: Any) -> Any:
    """A third-party model, registered under its own type; mindone's own models cannot be built on a CPU."""
    from mindone.transformers.generation import GenerationMixin

    class OtherConfig(transformers.PretrainedConfig):
        model_type = "share4v-tests-other"

    class Other(zoo.PreTrainedModel, GenerationMixin):
        config_class = OtherConfig

    transformers.AutoConfig.register(OtherConfig.model_type, OtherConfig)
    for auto in (zoo.AutoModelForVision2Seq, zoo.AutoModelForImageTextToText):
        auto.register(OtherConfig, Other)
    return Other(OtherConfig())


def test_other_models_use_mindone_pipelines(zoo: Any, other: Any, directory: str) -> None:
    from mindone.transformers.pipelines.image_text_to_text import ImageTextToTextPipeline
    from mindone.transformers.pipelines.image_to_text import ImageToTextPipeline

    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    pixels = zoo.AutoImageProcessor.from_pretrained(directory)
    options = {"model": other, "config": other.config, "dtype": None}
    run = zoo.pipeline("image-to-text", tokenizer=tokenizer, image_processor=pixels, **options)
    assert type(run) is ImageToTextPipeline and not hasattr(run, "_registered_impl")
    assert (run.model, run.tokenizer, run.image_processor) == (other, tokenizer, pixels)
    processor = zoo.AutoProcessor.from_pretrained(directory)
    run = zoo.pipeline("image-text-to-text", processor=processor, **options)
    assert type(run) is ImageTextToTextPipeline and run.processor is processor


def test_other_models_still_need_their_processors(zoo: Any, other: Any, directory: str, tmp_path: Path) -> None:
    other.config.name_or_path = str(tmp_path)
    options = {"model": other, "config": other.config, "dtype": None}
    with pytest.raises(OSError, match=r"preprocessor_config\.json"):
        zoo.pipeline("image-to-text", tokenizer=transformers.AutoTokenizer.from_pretrained(directory), **options)
    with pytest.raises((OSError, ValueError), match=str(tmp_path)):
        zoo.pipeline("image-text-to-text", **options)

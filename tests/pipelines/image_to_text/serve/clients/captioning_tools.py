"""Checks a running server with captioning tools that cannot share the environment of the tests: datatrove, argus-lens.

    python -m venv tools && tools/bin/pip install datatrove httpx openai aiosqlite 'argus-lens[cli]'
    share4v serve --port 8017 &
    tools/bin/python tests/pipelines/image_to_text/serve/clients/captioning_tools.py http://127.0.0.1:8017 scene.png

datatrove must get the text that the plain API gives, and go on after a document whose image is broken. argus-lens must
caption the image.
"""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODEL = "sharegpt4v-tiny"


def body(image: bytes) -> dict[str, Any]:
    """A request about an image, in OpenAI's format."""
    url = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    parts = [{"type": "text", "text": "Describe this image"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 64, "temperature": 0}


def plain(server: str, image: Path) -> str:
    """The text that the plain API gives."""
    data = json.dumps({"model": MODEL, **body(image.read_bytes())}).encode()
    request = urllib.request.Request(f"{server}/v1/chat/completions", data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def datatrove(server: str, image: Path, folder: Path) -> dict[str, list[str]]:
    """Texts by document, as datatrove's inference runner got them."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.base import PipelineStep
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter

    found: dict[str, list[str]] = {}

    class Documents(PipelineStep):
        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
            yield from (Document(text="", id=name) for name in ("good", "broken"))

    async def rollout(document: Any, generate: Callable[..., Any]) -> str:
        result = await generate(body(b"no image" if document.id == "broken" else image.read_bytes()))
        found.setdefault(document.id, []).append(result.text)
        return str(result.text)

    config = InferenceConfig(
        server_type="endpoint",
        model_name_or_path=MODEL,
        endpoint_url=server,
        model_max_context=512,
        rollouts_per_document=2,
    )
    runner = InferenceRunner(rollout, config, JsonlWriter(str(folder / "out")), skip_bad_requests=True)
    LocalPipelineExecutor([Documents(), runner], logging_dir=str(folder / "logs")).run()
    return found


def argus_lens(server: str, image: Path, folder: Path) -> str:
    """The caption file that argus-lens writes; it rearranges the text."""
    pictures = folder / "pictures"
    pictures.mkdir()
    (pictures / "scene.png").write_bytes(image.read_bytes())
    options = ["--backend", "openai-compat", "--base-url", f"{server}/v1", "--model-id", MODEL, "--no-refine"]
    program = Path(sys.executable).with_name("argus-lens")
    subprocess.run([program, "caption", pictures, *options, "--prompt", "Describe this image"], check=True)
    return (pictures / "scene.txt").read_text(encoding="utf-8")


def main() -> None:
    """Run both tools."""
    server, image = sys.argv[1].rstrip("/"), Path(sys.argv[2])
    expected = plain(server, image)
    with tempfile.TemporaryDirectory() as folder:
        assert datatrove(server, image, Path(folder)) == {"good": [expected, expected]}
        assert "squares" in argus_lens(server, image, Path(folder))
    print("datatrove and argus-lens work")  # noqa: T201


if __name__ == "__main__":
    main()

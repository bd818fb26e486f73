"""Requests of captioning tools as they were recorded from the tools, sent over a plain socket and read as they read.

Only the pictures are other ones. `clients/captioning_tools.py` runs the tools themselves.
"""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.serving import MODEL, SCENE, Live
from PIL import Image

PATH = "/v1/chat/completions"
LONG_SIDE = 1024


def jpeg(side: int | None = None) -> str:
    """The scene as a JPEG in base64."""
    buffer = io.BytesIO()
    with Image.open(SCENE) as image:
        (image if side is None else image.resize((side, side))).convert("RGB").save(buffer, "JPEG", quality=90)
    return base64.b64encode(buffer.getvalue()).decode()


def image_part(kind: str, data: str, **more: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}", **more}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def png() -> str:
    return base64.b64encode(SCENE.read_bytes()).decode()


@dataclass
class Recorded:
    """A request.

    Attributes:
        body: its JSON.
        headers: besides Host, Content-Type and Content-Length.
        status: that the tool goes on with.
    """

    body: dict[str, Any]
    headers: dict[str, str]
    status: int = 200


def caption_flow(has_picture: bool = True) -> Recorded:
    """The worker of caption-flow 0.5.7, picture first; and its second attempt `retry_without_image`."""
    text = text_part("describe this image in detail")
    parts = [image_part("image/jpeg", jpeg(), detail="auto"), text] if has_picture else [text]
    sampling = {"temperature": 0.7, "top_p": 0.95, "max_tokens": 128, "stop": ["<|end|>"], "seed": 3}
    headers = {"Authorization": "Bearer key", "User-Agent": "CaptionFlow/0.5.7", "Accept": "*/*"}
    return Recorded(
        {"model": MODEL, "messages": [{"role": "user", "content": parts}], **sampling},
        {**headers, "Accept-Encoding": "gzip, deflate"},
    )


def argus_lens(**fields: Any) -> Recorded:
    """argus-lens 0.10.0 with `openai-compat`, which sends no key; its picture has a long side of 1024."""
    messages = [
        {"role": "system", "content": "You are a captioner."},
        {"role": "user", "content": [text_part("Describe this image"), image_part("image/jpeg", jpeg(LONG_SIDE))]},
    ]
    return Recorded(
        {"model": MODEL, "messages": messages, "max_tokens": 300, **fields}, {"User-Agent": "python-httpx/0.28.1"}
    )


def refiner(**fields: Any) -> Recorded:
    """Its refiner: a plain string, and after a 400 that names reasoning_effort the same without it."""
    messages = [{"role": "system", "content": "Improve."}, {"role": "user", "content": "a red square"}]
    sampling = {"temperature": 0, "max_tokens": 2000, "seed": 0}
    status = 400 if fields else 200
    return Recorded({"model": MODEL, "messages": messages, **sampling, **fields}, {}, status)


def datatrove() -> Recorded:
    """datatrove 0.10.1 with an endpoint on this machine: a raw socket, without a key."""
    parts = [text_part("Describe this image"), image_part("image/png", png())]
    return Recorded({"messages": [{"role": "user", "content": parts}], "model": MODEL}, {"Connection": "close"})


def datasety() -> Recorded:
    """datasety 0.44.0 `caption --llm-api`, whose default prompt is meant for another model."""
    parts = [text_part("<MORE_DETAILED_CAPTION>"), image_part("image/png", png())]
    body = {"model": MODEL, "messages": [{"role": "user", "content": parts}], "max_tokens": 300, "temperature": 0.3}
    return Recorded(body, {"Authorization": "Bearer key", "Connection": "close", "User-Agent": "Python-urllib/3.11"})


def data_juicer() -> Recorded:
    """py-data-juicer 1.6.1: a PNG that is called a JPEG."""
    messages = [
        {"role": "system", "content": "You tag images."},
        {"role": "user", "content": [text_part("Tags?"), image_part("image/jpeg", png())]},
    ]
    return Recorded({"messages": messages, "model": MODEL}, {"Authorization": "Bearer key"})


def distilabel() -> Recorded:
    """distilabel 1.5.3: fields that ask for nothing, `top_logprobs` null among them."""
    parts = [text_part("Describe this image"), image_part("image/jpeg", png())]
    nothing = {"logprobs": False, "top_logprobs": None, "frequency_penalty": 0.0, "presence_penalty": 0.0, "n": 1}
    sampling = {"max_tokens": 128, "temperature": 1.0, "top_p": 1.0}
    return Recorded({"messages": [{"role": "user", "content": parts}], "model": MODEL, **nothing, **sampling}, {})


REQUESTS: dict[str, Callable[[], Recorded]] = {
    "caption-flow": caption_flow,
    "caption-flow without image": lambda: caption_flow(False),
    "argus-lens": argus_lens,
    "argus-lens refiner": lambda: refiner(reasoning_effort="none"),
    "argus-lens refiner again": refiner,
    "argus-lens verifier": lambda: argus_lens(temperature=0, max_tokens=10),
    "datatrove": datatrove,
    "datasety": datasety,
    "py-data-juicer": data_juicer,
    "distilabel": distilabel,
}


def exchange(live: Live, recorded: Recorded) -> tuple[int, dict[str, str], bytes]:
    """Send a request and return status, headers and body, as a client does that knows no chunks."""
    host, _, port = live.url.removeprefix("http://").partition(":")
    body = json.dumps(recorded.body).encode()
    headers = {"Host": host, "Content-Type": "application/json", "Content-Length": str(len(body)), **recorded.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + body)
        with connection.makefile("rb") as answer:
            status = int(answer.readline().split()[1])
            found = {}
            while line := answer.readline().strip():
                name, _, value = line.decode().partition(": ")
                found[name.lower()] = value
            closes = recorded.headers.get("Connection") == "close"  # then it reads to the end of the connection
            return status, found, answer.read() if closes else answer.read(int(found["content-length"]))


@pytest.mark.parametrize("tool", REQUESTS)
def test_a_tool_gets_what_it_can_read(live: Live, tool: str) -> None:
    recorded = REQUESTS[tool]()
    status, headers, body = exchange(live, recorded)
    found = json.loads(body)
    assert status == recorded.status, found
    assert int(headers["content-length"]) == len(body) and "transfer-encoding" not in headers
    if status == 400:
        assert found["error"]["param"] == "reasoning_effort"
        return
    [choice] = found["choices"]
    assert choice["message"]["content"] and choice["finish_reason"] in ("stop", "length")
    assert {"prompt_tokens", "completion_tokens", "total_tokens"} <= set(found["usage"])


def test_vlm_caption_streams_a_conversation_in_parts(live: Live, scene: str) -> None:
    """Its later turns have the whole conversation, assistant texts as lists of parts, and no max_tokens."""
    first = [text_part("Describe this image"), {"type": "image_url", "image_url": {"url": scene}}]
    turns: list[dict[str, Any]] = [{"role": "system", "content": "Short."}, {"role": "user", "content": first}]
    for fields in ({"max_tokens": 16384}, {"stream_options": {"include_usage": True}}):
        found = live.post(PATH, {"model": MODEL, "messages": turns, "stream": True, "temperature": 0, **fields})
        data = [line.removeprefix("data: ") for line in found.text.split("\n\n") if line.startswith("data: ")]
        assert found.status_code == 200 and data[-1] == "[DONE]"
        chunks = [json.loads(one) for one in data[:-1]]
        text = "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks if one["choices"])
        assert text
        turns += [
            {"role": "assistant", "content": [text_part(text)]},
            {"role": "user", "content": [text_part("Which colour?")]},
        ]
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] > 0

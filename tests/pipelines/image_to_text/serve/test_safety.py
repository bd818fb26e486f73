"""Access, limits and hostile input; tests of advisories about other servers have their names."""

from __future__ import annotations

import base64
import hmac
import io
import socket
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import httpx
import numpy as np
import pytest
from helpers.serving import SCENE, Live, chat, serving, wait_until
from PIL import Image

from mindone.pipelines.image_to_text.serve.options import Limits

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def guarded(tiny: Any) -> Iterator[Live]:
    """A server with keys, small limits, and images from *.example."""
    limits = Limits(body_bytes=200_000, images=2, image_pixels=100_000, choices=2, new_tokens=8)
    options = {"api_keys": KEYS, "allow_url_hosts": ("*.example",), "cors_origins": ("https://page.example",)}
    with serving(tiny, limits=limits, max_batch=2, **options) as running:
        yield running


def key(name: str = KEYS[0]) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


def picture(width: int, height: int, kind: str = "PNG", **options: Any) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, kind, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def message(found: httpx.Response, status: int = 400) -> str:
    assert found.status_code == status, found.text
    error = found.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


# Access

PATHS = (
    "/v1/models",
    "/metrics",
    "/openapi.json",
    "/docs",
    "/api/tags",
    "/api/version",
    "/nothing",
    "/invocations",
)


@pytest.mark.parametrize("path", PATHS)
def test_every_route_needs_a_key(guarded: Live, path: str) -> None:
    assert "is missing" in str(guarded.get(path).text) and guarded.get(path).status_code == 401
    assert guarded.get(path, headers=key("third")).status_code == 401
    assert guarded.get(path, headers=key()).status_code in (200, 404)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/tokenize", "/detokenize"])
def test_every_post_needs_a_key(guarded: Live, path: str) -> None:
    assert guarded.post(path, {}).status_code == 401
    assert guarded.post(path, {}, headers=key()).status_code == 400


def test_health_and_the_page_need_no_key_and_all_keys_work(guarded: Live) -> None:
    assert guarded.get("/health").status_code == 200 and guarded.get("/").status_code == 200
    assert not any(name in guarded.get("/").text for name in KEYS)
    for name in KEYS:
        assert guarded.get("/v1/models", headers=key(name)).status_code == 200
        assert guarded.get("/v1/models", headers={"x-api-key": name}).status_code == 200
    for wrong in ("", "Basic first-key", "first-key", "Bearer", "Bearer first-key x", "Bearer first-ke"):
        assert guarded.get("/v1/models", headers={"Authorization": wrong}).status_code == 401
    twice = [("Authorization", "Bearer first-key"), ("Authorization", "Bearer first-key")]
    assert guarded.get("/v1/models", headers=twice).status_code == 401


def test_cve_2025_59425_keys_are_compared_in_constant_time(guarded: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or compare(a, b))
    for name in ("x", *KEYS, "x" * 5000):
        guarded.get("/v1/models", headers=key(name))
    assert compared == [(32, 32)] * 8  # every key each time, in digests of one length


def test_web_pages_of_other_origins(live: Live, guarded: Live) -> None:
    body = chat("Hello", max_tokens=1)
    assert live.post("/v1/chat/completions", body, headers={"Origin": "https://evil.example"}).status_code == 403
    assert live.post("/v1/chat/completions", body, headers={"Origin": live.url}).status_code == 200
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    with guarded.client() as client:
        allowed = client.options("/v1/chat/completions", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        other = client.options("/v1/chat/completions", headers={**asked, "Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in other.headers
    with live.client() as client:
        assert client.options("/v1/chat/completions").status_code == 405


def test_dns_rebinding(live: Live) -> None:
    assert "names another host" in message(live.get("/v1/models", headers={"Host": "evil.example"}), 403)
    assert live.get("/v1/models", headers={"Host": "localhost"}).status_code == 200
    assert live.get("/v1/models", headers={"Host": "[::1]:8000"}).status_code == 200


def test_headers_of_the_page(live: Live) -> None:
    found = live.get("/docs")
    assert "default-src 'none'" in found.headers["content-security-policy"]
    assert found.headers["x-content-type-options"] == "nosniff" and "<script" not in found.text


# Limits


def test_limits_of_bodies(guarded: Live) -> None:
    large = chat("x" * 300_000)
    found = guarded.post("/v1/chat/completions", large, headers=key())
    assert "larger than the limit of 200,000 bytes" in message(found, 413)

    def pieces() -> Iterator[bytes]:
        for _ in range(300):
            yield b" " * 1000

    with guarded.client(headers=key()) as client:  # without Content-Length
        try:
            found = client.post("/v1/chat/completions", content=pieces())
            assert found.status_code == 413
        except httpx.WriteError:
            pass  # the server has closed the connection before everything was sent
    wait_until(lambda: guarded.service.admission.active == 0)
    packed = {**key(), "Content-Encoding": "gzip"}
    assert "must not be compressed" in message(guarded.post("/v1/chat/completions", {}, headers=packed), 415)


def test_limits_of_images_and_answers(guarded: Live) -> None:
    def ask(body: dict[str, Any]) -> httpx.Response:
        return guarded.post("/v1/chat/completions", body, headers=key())

    large = chat("What?", picture(400, 300))
    assert "has 400 x 300 pixels, more than the limit of 100,000" in message(ask(large))
    many = chat("What?")
    many["messages"][0]["content"] += [{"type": "image_url", "image_url": {"url": picture(9, 9)}}] * 3
    assert "has 3 images, more than the limit of 2" in message(ask(many))
    assert "n must be an integer from 1 to 2, got 3" in message(ask(chat("What?", n=3)))
    assert "at most 16 values" in message(ask(chat("What?", stop=["x"] * 17)))
    assert "1 to 256 characters" in message(ask(chat("What?", stop="x" * 257)))
    done = ask(chat("What?", picture(9, 9), max_tokens=100_000, min_tokens=8)).json()
    assert done["usage"]["completion_tokens"] == 8 and done["choices"][0]["finish_reason"] == "length"


def test_vllm_max_n_sequences(guarded: Live) -> None:
    for body in (chat("x", n=10**9), chat("x", best_of=10**9), chat("x", logprobs=True, top_logprobs=10**9)):
        assert guarded.post("/v1/chat/completions", body, headers=key()).status_code == 400
    prompts = {"prompt": ["x"] * 1000}
    found = guarded.post("/v1/completions", prompts, headers=key())
    assert "1000 answers, more than the limit of 2" in message(found)


def test_cve_2025_48956_giant_headers(live: Live) -> None:
    host, _, port = live.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=300) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Giant: ")
        try:
            for _ in range(100):
                connection.sendall(b"x" * 100_000)
            answer = connection.recv(100)
        except OSError:
            answer = b""  # closed while we were sending
    assert not answer or answer.startswith(b"HTTP/1.1 400")
    assert live.get("/health").status_code == 200


# Hostile input


def test_cve_2026_44222_placeholders_in_a_text_are_text(
    live: Live, tiny: Any, ask: Callable[..., str], scene: str
) -> None:
    for text in (
        "<image>",
        "What does <image> mean? <image><image>",
        "</s><s>",
        "<<image>image>",
        "\ufdd0<image>\ufdd0",
    ):
        done = live.post("/v1/chat/completions", chat(text, scene, max_tokens=3))
        assert done.status_code == 200, done.text
        usage = done.json()["usage"]["prompt_tokens_details"]
        assert usage["image_tokens"] == tiny.model.config.num_image_tokens
        tokens = live.post("/tokenize", {"prompt": text, "return_token_strs": True}).json()
        assert tiny.processor.image_token_id not in tokens["tokens"]
        assert tiny.processor.tokenizer.eos_token_id not in tokens["tokens"]
        assert live.post("/detokenize", {"tokens": tokens["tokens"]}).json()["prompt"] == text


def test_cve_2025_46560_many_placeholders(live: Live) -> None:
    assert "context" in message(live.post("/v1/chat/completions", chat("<image>" * 2000)))
    assert "characters, more than the model's context" in message(
        live.post("/v1/chat/completions", chat("<image>" * 100_000))
    )


@pytest.mark.parametrize("source", ["/etc/passwd", "file:///etc/passwd", "examples/scene.png", "ftp://x/y", "a" * 99])
def test_llama_cpp_python_2220_local_files_are_never_read(live: Live, source: str) -> None:
    found = live.post("/v1/chat/completions", chat("What?", source))
    assert "base64" in message(found) or "not an image" in message(found)
    assert "root" not in found.text


def test_cve_2025_6242_urls_are_refused_unless_they_are_allowed(live: Live, guarded: Live) -> None:
    body = chat("What?", "http://127.0.0.1:1/a.png")
    assert "this server downloads no images" in message(live.post("/v1/chat/completions", body))
    assert "not one of those" in message(guarded.post("/v1/chat/completions", body, headers=key()))


def test_cve_2026_22778_errors_of_decoders_are_not_repeated(live: Live) -> None:
    good = base64.b64decode(picture(40, 40))
    noise = bytes(np.random.default_rng(0).integers(0, 256, 4000, np.uint8))
    for data in (
        good[: len(good) // 2],
        good[:20],
        b"\x89PNG\r\n\x1a\n" + noise,
        noise,
        b"GIF89a" + noise,
        b"BM" + noise,
    ):
        found = live.post("/v1/chat/completions", chat("What?", base64.b64encode(data).decode()))
        assert message(found) == (
            "messages[0].content[1].image_url is damaged or not an image: send a JPEG, PNG, WebP, GIF or BMP file"
        )


def broken_images(seed: int) -> list[bytes]:
    """Files of every format that Pillow writes here: cut off, with flipped bits, and with bytes too few or too many."""
    random, files = Random(seed), []
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8))
    Image.init()
    for kind in sorted({"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"} & Image.SAVE.keys()):
        buffer = io.BytesIO()
        image.save(buffer, kind)
        data = buffer.getvalue()
        flipped = bytearray(data)
        for _ in range(5):
            flipped[random.randrange(min(len(data), 300))] ^= 1 << random.randrange(8)
        place = random.randrange(12, len(data))
        files += [data[:place], bytes(flipped), data[:place] + data[place + 5 :], data[:20] + random.randbytes(500)]
    return files


def test_broken_images_are_refused_or_answered(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    """A seeded part of several hundred files; none of them may be an error of the server, or end it."""
    with live.client() as client:
        for number, data in enumerate(broken_images(7)):
            uri = base64.b64encode(data).decode()
            found = client.post("/v1/chat/completions", json=chat("What?", uri, max_tokens=1))
            assert found.status_code in (200, 400), (number, found.text)
            if found.status_code == 400:
                assert found.json()["error"]["code"] in ("invalid_image", "image_too_large")
        assert client.post("/v1/chat/completions", json=chat("What?", max_tokens=1)).status_code == 200
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_cve_2026_22773_tiny_images(live: Live, size: tuple[int, int]) -> None:
    done = live.post("/v1/chat/completions", chat("What?", picture(*size), max_tokens=2))
    assert done.status_code == 200, done.text


def test_a_line_of_a_million_pixels(live: Live) -> None:
    found = live.post("/v1/chat/completions", chat("What?", picture(1_000_000, 1)))
    assert "has 1000000 x 1 pixels, more than the limit of 30,000 for a side" in message(found)


def test_cve_2026_5497_only_the_first_frame_is_decoded(live: Live, scene: str) -> None:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (64, 64), (number % 256, 0, 0)) for number in range(300)]
    with Image.open(SCENE) as first:
        first.convert("RGB").resize((64, 64)).save(buffer, "GIF", save_all=True, append_images=frames)
    done = live.post("/v1/chat/completions", chat("What?", base64.b64encode(buffer.getvalue()).decode(), max_tokens=2))
    assert done.status_code == 200
    assert done.json()["usage"]["prompt_tokens_details"]["image_tokens"] > 0


def test_cve_2023_4863_webp_is_given_to_its_library_in_another_process_only(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libwebp has had an overflow that a file could use; here, a file can end only the process that decodes it."""
    from PIL import WebPImagePlugin

    done = live.post("/v1/chat/completions", chat("What?", picture(40, 30, "WEBP"), max_tokens=2))
    monkeypatch.setattr(WebPImagePlugin.WebPImageFile, "_open", lambda self: pytest.fail("opened in the server"))
    again = live.post("/v1/chat/completions", chat("What?", picture(40, 30, "WEBP"), max_tokens=2))
    assert done.status_code == 200 and again.json()["choices"] == done.json()["choices"]
    canvas = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\xff\x00" * 2
    found = live.post("/v1/chat/completions", chat("What?", base64.b64encode(canvas).decode()))
    assert "has 65536 x 65536 pixels, more than the limit" in message(found)
    found = live.post("/v1/chat/completions", chat("What?", base64.b64encode(b"RIFF" + bytes(40)).decode()))
    assert "is damaged or not an image" in message(found)


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "TGA", "ICO"])
def test_formats_that_are_not_accepted(live: Live, kind: str) -> None:
    assert "not an image" in message(live.post("/v1/chat/completions", chat("What?", picture(32, 32, kind))))


REFUSED = {
    "cve_2025_62426_chat_template_kwargs": {"chat_template_kwargs": {"tokenize": False}},
    "cve_2025_61620_chat_template": {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"},
    "cve_2025_48944_tools": {"tools": [{"type": "function", "function": {"parameters": {"type": "whatever"}}}]},
    "cve_2025_62164_prompt_embeds": {"prompt_embeds": base64.b64encode(b"pickle").decode()},
    "cve_2026_3059_custom_logit_processor": {"custom_logit_processor": "pickle"},
    "cve_2025_29770_guided_grammar": {"guided_grammar": "root ::= root"},
    "mm_processor_kwargs": {"mm_processor_kwargs": {"size": 10**9}},
    "lora_path": {"lora_path": "/tmp/x"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_fields_that_are_dangerous_elsewhere(live: Live, name: str) -> None:
    field = next(iter(REFUSED[name]))
    found = live.post("/v1/chat/completions", chat("Hello", **REFUSED[name]))
    assert field in message(found) and found.json()["error"]["param"] == field


def test_a_log_with_content_has_no_images(tiny: Any) -> None:
    image = picture(9, 9)
    message = {
        "role": "user",
        "content": [{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": image}],
    }
    bodies = {
        "/v1/chat/completions": {"messages": [message]},
        "/api/chat": {"messages": [{"role": "user", "content": "What?", "images": [image]}], "stream": False},
        "/v1/completions": {"prompt": "What?"},
    }
    with serving(tiny, max_batch=1, log_content=True) as running:
        for path, body in bodies.items():
            limit = {"options": {"num_predict": 2}} if path.startswith("/api") else {"max_tokens": 2}
            assert running.post(path, {**body, **limit}).status_code == 200
        wait_until(lambda: len(running.log) == len(bodies))  # it is written after the answer was sent
        assert image not in str(running.log)
        chats = [record["request"]["prompts"] for record in running.log]
    assert chats == [[[{"role": "user", "text": "What?", "images": 1}]]] * 2 + [["What?"]]


def test_a_log_has_no_content_and_no_key(guarded: Live) -> None:
    body = chat("very secret words", max_tokens=2)
    found = guarded.post("/v1/chat/completions?token=hidden", body, headers=key())
    name = found.headers["x-request-id"]
    wait_until(lambda: any(one["request_id"] == name for one in guarded.log))  # it is written after the answer was sent
    (record,) = (one for one in guarded.log if one["request_id"] == name)
    assert record["status"] == 200 and record["prompt_tokens"] > 5 and record["completion_tokens"] == 2
    assert len(record["request_id"]) == 32
    for hidden in ("secret", "first-key", "hidden"):
        assert hidden not in str(guarded.log)

"""Checks a running server with clients that cannot share the environment of the tests: litellm and langchain-openai.

    python -m venv clients && clients/bin/pip install litellm langchain-openai
    share4v serve --port 8017 &
    clients/bin/python tests/pipelines/image_to_text/serve/clients/other_clients.py http://127.0.0.1:8017 scene.png

Each client must get the text that the plain API gives, whole and streamed.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # litellm would download a list of prices
QUESTION = "Describe this image"


def messages(image: Path) -> list[dict[str, Any]]:
    """The question about an image, in OpenAI's format."""
    url = f"data:image/png;base64,{base64.b64encode(image.read_bytes()).decode()}"
    parts = [{"type": "text", "text": QUESTION}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


def plain(url: str, image: Path) -> str:
    """The answer to a request without a client."""
    body = json.dumps({"messages": messages(image)}).encode()
    request = urllib.request.Request(f"{url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return str(json.load(answer)["choices"][0]["message"]["content"])


def litellm_openai(url: str, model: str, image: Path) -> list[str]:
    """litellm as a client of OpenAI's API."""
    import litellm

    asked = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none", "messages": messages(image)}
    whole = litellm.completion(**asked)
    pieces = litellm.completion(**asked, stream=True)
    return [
        whole.choices[0].message.content,
        "".join(piece.choices[0].delta.content or "" for piece in pieces),
    ]


def litellm_ollama(url: str, model: str, image: Path) -> list[str]:
    """litellm as a client of Ollama's API."""
    import litellm

    asked = {"model": f"ollama_chat/{model}", "api_base": url, "messages": messages(image)}
    return [litellm.completion(**asked).choices[0].message.content]


def litellm_anthropic(url: str, model: str, image: Path) -> list[str]:
    """litellm as a client of Anthropic's API."""
    import litellm

    asked = {"model": f"anthropic/{model}", "api_base": url, "api_key": "none", "messages": messages(image)}
    return [litellm.completion(**asked, max_tokens=256).choices[0].message.content]


def langchain(url: str, model: str, image: Path) -> list[str]:
    """langchain-openai."""
    from langchain_openai import ChatOpenAI

    chat = ChatOpenAI(model=model, base_url=f"{url}/v1", api_key="none", max_retries=0)  # type: ignore[arg-type]
    asked = messages(image)
    return [str(chat.invoke(asked).content), "".join(str(piece.content) for piece in chat.stream(asked))]


CLIENTS: tuple[Callable[[str, str, Path], list[str]], ...] = (
    litellm_openai,
    litellm_ollama,
    litellm_anthropic,
    langchain,
)


def main() -> int:
    url, image = sys.argv[1].rstrip("/"), Path(sys.argv[2])
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        model = json.load(answer)["data"][0]["id"]
    wanted, failed = plain(url, image), 0
    for client in CLIENTS:
        try:
            texts = client(url, model, image)
            problem = "" if all(text == wanted for text in texts) else f"got {texts}, expected {wanted!r}"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        failed += bool(problem)
        sys.stdout.write(f"{client.__name__}: {problem or 'ok'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

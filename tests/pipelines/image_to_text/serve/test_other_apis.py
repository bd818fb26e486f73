"""Anthropic's and Ollama's APIs through their own clients, and vLLM's tokenize."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import ollama
import pytest
from helpers.serving import MODEL, SCENE, Live, chat


@pytest.fixture(scope="module")
def claude(live: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def llama(live: Live) -> ollama.Client:
    return ollama.Client(host=live.url, trust_env=False)


def messages(question: str) -> list[Any]:
    data = base64.b64encode(SCENE.read_bytes()).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    return [{"role": "user", "content": [image, {"type": "text", "text": question}]}]


def test_a_message(claude: anthropic.Anthropic, ask: Callable[..., str]) -> None:
    asked = {"model": MODEL, "max_tokens": 256, "messages": messages("Describe this image")}
    message = claude.messages.create(**asked)
    assert message.content[0].text == ask("Describe this image")  # type: ignore[union-attr]
    assert (message.stop_reason, message.stop_sequence, message.role) == ("end_turn", None, "assistant")
    count = claude.messages.count_tokens(model=MODEL, messages=asked["messages"])  # type: ignore[arg-type]
    usage = message.usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    with claude.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == ask("Describe this image")
        final = stream.get_final_message()
    assert final.usage.output_tokens == usage.output_tokens and final.stop_reason == "end_turn"


def test_how_a_message_stops(claude: anthropic.Anthropic, ask: Callable[..., str]) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": messages("Describe this image")}
    short = claude.messages.create(**asked, max_tokens=4)
    assert short.stop_reason == "max_tokens" and short.usage.output_tokens == 4
    stopped = claude.messages.create(**asked, max_tokens=99, stop_sequences=["nothing", "circle"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "circle")
    assert stopped.content[0].text == ask("Describe this image", stop=["circle"])  # type: ignore[union-attr]


def test_system_messages_and_sampling_of_messages(claude: anthropic.Anthropic, tiny: Any) -> None:
    asked = [{"role": "user", "content": "Hello"}]
    blocks: Any = [{"type": "text", "text": "Be brief."}]
    sampled = {"top_k": 5, "top_p": 0.9, "temperature": 0.7}
    message = claude.messages.create(
        model=MODEL,
        max_tokens=9,
        system=blocks,
        messages=asked,  # type: ignore[arg-type]
        extra_body=sampled,
    )
    assert message.usage.output_tokens <= 9
    greedy = claude.messages.create(model=MODEL, max_tokens=9, system="Be brief.", messages=asked)  # type: ignore[arg-type]
    text = [{"role": "system", "content": "Be brief."}, *asked]
    wanted = tiny(text=text, return_full_text=False, max_new_tokens=9)[0]["generated_text"]
    assert greedy.content[0].text == wanted  # type: ignore[union-attr]


def test_errors_of_anthropics_api(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="tools is not supported") as found:
        claude.messages.create(model=MODEL, max_tokens=9, messages=messages("x"), tools=[{"name": "f"}])  # type: ignore[list-item]
    assert found.value.body["type"] == "error"  # type: ignore[index]
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="claude", max_tokens=9, messages=messages("x"))
    assert [model.id for model in claude.models.list()] == [MODEL]


def test_a_chat_of_ollama(llama: ollama.Client, ask: Callable[..., str]) -> None:
    asked = [{"role": "user", "content": "Describe this image", "images": [SCENE.read_bytes()]}]
    answer = llama.chat(MODEL, asked)
    assert answer.message.content == ask("Describe this image")
    assert answer.done and answer.done_reason == "stop" and (answer.eval_count or 0) > 10
    assert (answer.total_duration or 0) >= (answer.eval_duration or 0) > 0
    pieces = list(llama.chat(f"{MODEL}:latest", asked, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == answer.message.content
    assert [piece.done for piece in pieces[:-1]] == [False] * (len(pieces) - 1) and pieces[-1].done


def test_a_text_of_ollama(llama: ollama.Client, ask: Callable[..., str]) -> None:
    options = {"temperature": 1.3, "seed": 3, "num_predict": 20, "stop": ["square"]}
    answer = llama.generate(MODEL, "Describe this image", images=[SCENE.read_bytes()], options=options)
    settings = {"do_sample": True, "temperature": 1.3, "seed": 3, "max_new_tokens": 20, "stop": ["square"]}
    assert answer.response == ask("Describe this image", **settings)
    pieces = llama.generate(MODEL, "Describe this image", images=[SCENE.read_bytes()], options=options, stream=True)
    assert "".join(piece.response or "" for piece in pieces) == answer.response


def test_what_ollamas_clients_ask_for(llama: ollama.Client) -> None:
    assert [model.model for model in llama.list().models] == [MODEL]
    shown = llama.show(MODEL)
    assert shown.capabilities == ["completion", "vision"]
    assert (shown.modelinfo or {})["share4v.context_length"] > 100
    with pytest.raises(ollama.ResponseError, match="does not exist here") as found:
        llama.chat("llava", [{"role": "user", "content": "x"}])
    assert found.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"options\.mirostat is not supported"):
        llama.generate(MODEL, "x", options={"mirostat": 2})


def test_tokens(live: Live, tiny: Any, scene: str) -> None:
    ids = tiny.processor.tokenizer.encode("a red circle")
    found = live.post("/tokenize", {"prompt": "a red circle", "return_token_strs": True}).json()
    assert found["tokens"] == ids and found["count"] == len(ids) and found["max_model_len"] > 100
    assert len(found["token_strs"]) == len(ids)
    assert live.post("/tokenize", {"prompt": "a red circle", "add_special_tokens": False}).json()["tokens"] == ids[1:]
    assert live.post("/detokenize", {"tokens": ids}).json() == {"prompt": "a red circle"}
    body = chat("What is this?", scene)
    count = live.post("/tokenize", {"messages": body["messages"]}).json()["count"]
    assert live.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"] == count
    assert live.post("/detokenize", {"tokens": [10**9]}).status_code == 400

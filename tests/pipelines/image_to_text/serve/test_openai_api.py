"""OpenAI's API through its own client: the text is the pipeline's, alone and among many, whole and streamed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from helpers.serving import MODEL, SCENE, Live, chat, serving

QUESTIONS = ("Describe this image", "What is in the bottom right?", "Is there a circle?", "Where are the stars?")


@pytest.fixture(scope="module")
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_caption_is_the_pipelines(client: openai.OpenAI, ask: Callable[..., str], scene: str) -> None:
    answer = client.chat.completions.create(**chat("Describe this image", scene))
    assert answer.choices[0].message.content == ask("Describe this image") != ""
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", MODEL, "stop")
    assert answer.id.startswith("chatcmpl-")
    usage = answer.usage
    assert usage and usage.prompt_tokens_details
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.prompt_tokens_details.image_tokens < usage.prompt_tokens  # type: ignore[operator]


def test_a_stream_is_the_whole_answer(client: openai.OpenAI, ask: Callable[..., str], scene: str) -> None:
    body = chat("Describe this image", scene, stream=True, stream_options={"include_usage": True})
    chunks = list(client.chat.completions.create(**body))
    *pieces, last = chunks
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == ask("Describe this image")
    assert pieces[0].choices[0].delta.role == "assistant" and pieces[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage and last.usage.completion_tokens > 10
    assert all(piece.usage is None for piece in pieces)
    timings = pieces[-1].timings  # type: ignore[attr-defined]
    assert timings["predicted_n"] == last.usage.completion_tokens and timings["predicted_per_second"] > 0
    assert timings["time_to_first_token_ms"] > 0


SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [  # of the request, and of `generate`
    ({}, {}),
    ({"max_tokens": 5}, {"max_new_tokens": 5}),
    ({"temperature": 0.0, "seed": 5}, {}),
    (
        {"temperature": 1.3, "seed": 11, "top_p": 0.95},
        {"do_sample": True, "temperature": 1.3, "seed": 11, "top_p": 0.95},
    ),
    ({"temperature": 1.5, "seed": 12, "top_k": 20}, {"do_sample": True, "temperature": 1.5, "seed": 12, "top_k": 20}),
    ({"top_p": 0.9, "seed": 3}, {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "seed": 3}),
    ({"min_p": 0.05, "seed": 4}, {"do_sample": True, "temperature": 1.0, "min_p": 0.05, "seed": 4}),
    ({"repetition_penalty": 1.3}, {"repetition_penalty": 1.3}),
    ({"presence_penalty": 1.5, "frequency_penalty": 0.7}, {"presence_penalty": 1.5, "frequency_penalty": 0.7}),
    ({"logit_bias": {"300": 9, "301": -100}}, {"logit_bias": {300: 9, 301: -100}}),
    ({"stop": ["circle", "square"]}, {"stop": ["circle", "square"]}),
    ({"stop": "."}, {"stop": "."}),
    ({"min_tokens": 60, "max_tokens": 70}, {"min_new_tokens": 60, "max_new_tokens": 70}),
    ({"ignore_eos": True, "max_completion_tokens": 80}, {"min_new_tokens": 80, "max_new_tokens": 80}),
]


@pytest.mark.parametrize(("fields", "settings"), SETTINGS, ids=lambda value: ",".join(value))
def test_fields_mean_what_generate_means(
    live: Live, ask: Callable[..., str], scene: str, fields: dict[str, Any], settings: dict[str, Any]
) -> None:
    question = QUESTIONS[1]
    done = live.post("/v1/chat/completions", chat(question, scene, **fields))
    assert done.status_code == 200, done.text
    assert done.json()["choices"][0]["message"]["content"] == ask(question, **settings)


def test_32_requests_at_random_times_get_the_text_that_each_gets_alone(
    live: Live, ask: Callable[..., str], scene: str
) -> None:
    jobs = []
    for number in range(32):
        fields, settings = SETTINGS[number % len(SETTINGS)]
        question, image = QUESTIONS[number % 3], scene if number % 5 else None
        jobs.append((chat(question, image, **fields), (question, SCENE if number % 5 else None, settings), number % 2))
    wanted = [ask(question, image, **settings) for _, (question, image, settings), _ in jobs]
    random.Random(1).shuffle(order := list(range(32)))

    def send(number: int) -> str:
        body, _, is_stream = jobs[number]
        if not is_stream:
            return str(live.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"])
        with openai.OpenAI(base_url=live.url, api_key="none", max_retries=0) as client:
            extra = {key: body.pop(key) for key in tuple(body) if key not in ("model", "messages")}
            stream = client.chat.completions.create(**body, stream=True, extra_body=extra)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(32) as pool:
        texts = dict(zip(order, pool.map(send, order), strict=True))
    assert [texts[number] for number in range(32)] == wanted


def test_several_answers_are_those_of_num_return_sequences(live: Live, tiny: Any, scene: str) -> None:
    settings = {"n": 3, "temperature": 1.5, "seed": 8}
    done = live.post("/v1/chat/completions", chat("Describe this image", scene, **settings)).json()
    inputs = tiny.processor(images=[SCENE], text=["Describe this image"])
    ids = tiny.model.generate(**inputs, do_sample=True, temperature=1.5, seed=8, num_return_sequences=3)
    texts = [tiny.processor.decode(one) for one in ids]
    assert [one["message"]["content"] for one in done["choices"]] == texts
    assert len(set(texts)) == 3
    assert done["usage"]["completion_tokens"] >= sum(map(len, ids))


def test_greedy_answers_are_the_same(live: Live, scene: str) -> None:
    done = live.post("/v1/chat/completions", chat(QUESTIONS[2], scene, n=2, temperature=0)).json()
    assert [one["index"] for one in done["choices"]] == [0, 1]
    assert len({one["message"]["content"] for one in done["choices"]}) == 1


def test_logprobs(client: openai.OpenAI, live: Live, scene: str) -> None:
    body = chat("Describe this image", scene, logprobs=True, top_logprobs=3, max_tokens=6)
    answer = client.chat.completions.create(**body)
    tokens = answer.choices[0].logprobs.content  # type: ignore[union-attr]
    assert tokens and len(tokens) == 6
    text = b"".join(bytes(token.bytes or ()) for token in tokens).decode()
    assert text.strip() == answer.choices[0].message.content
    for token in tokens:
        assert token.logprob <= 0 and token.top_logprobs[0].logprob == max(one.logprob for one in token.top_logprobs)
        assert len(token.top_logprobs) == 3 and token.token == token.top_logprobs[0].token  # greedy
    chunks = list(client.chat.completions.create(**body, stream=True))
    streamed = [one for chunk in chunks if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content or []]
    assert streamed == tokens


def test_completions_continue_a_text_without_a_template(client: openai.OpenAI, tiny: Any) -> None:
    prompt = "USER: What is this? ASSISTANT:"
    ids = tiny.processor.encode_prompt(prompt)
    wanted = tiny.processor.decode(tiny.model.generate(input_ids=[ids], max_new_tokens=12)[0])
    for given in (prompt, ids, [prompt], [ids]):
        answer = client.completions.create(model=MODEL, prompt=given, max_tokens=12, logprobs=2)
        assert answer.choices[0].text == wanted and answer.object == "text_completion"
    assert answer.choices[0].logprobs and len(answer.choices[0].logprobs.token_logprobs or ()) == 12
    pair = client.completions.create(model=MODEL, prompt=[prompt, "Hello"], max_tokens=3)
    assert [choice.index for choice in pair.choices] == [0, 1]
    stream = client.completions.create(model=MODEL, prompt=prompt, max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == wanted


def test_offsets_of_a_stream_are_those_of_the_whole_answer(live: Live) -> None:
    body = {"prompt": "USER: What is this? ASSISTANT:", "max_tokens": 6, "logprobs": 0}
    whole = live.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    lengths = [len(token) for token in whole["tokens"]]
    assert whole["text_offset"] == [sum(lengths[:index]) for index in range(6)]
    choices = [one for chunk in chunks_of(live, body) for one in chunk["choices"]]
    assert [one for choice in choices if choice["logprobs"] for one in choice["logprobs"]["text_offset"]] == (
        whole["text_offset"]
    )


def test_token_ids_of_every_prompt(live: Live) -> None:
    body = {"prompt": ["Hello", "What is this?"], "max_tokens": 2, "return_token_ids": True}
    wanted = [live.post("/tokenize", {"prompt": prompt}).json()["tokens"] for prompt in body["prompt"]]
    whole = live.post("/v1/completions", body).json()
    assert [choice["prompt_token_ids"] for choice in whole["choices"]] == wanted and "prompt_token_ids" not in whole
    choices = [one for chunk in chunks_of(live, body) for one in chunk["choices"]]
    named = {one["index"]: one["prompt_token_ids"] for one in choices if "prompt_token_ids" in one}
    assert [named[0], named[1]] == wanted and sum("prompt_token_ids" in one for one in choices) == 2


def chunks_of(live: Live, body: dict[str, Any]) -> list[dict[str, Any]]:
    text = live.post("/v1/completions", {**body, "stream": True}).text
    return [json.loads(line[len("data: ") :]) for line in text.split("\n\n") if line.startswith("data: {")]


def test_a_conversation_of_several_turns(client: openai.OpenAI, tiny: Any, scene: str) -> None:
    first = client.chat.completions.create(**chat("Describe this image", scene)).choices[0].message.content
    messages = [
        {"role": "system", "content": "You describe drawings."},
        *chat("Describe this image", scene)["messages"],
        {"role": "assistant", "content": [{"type": "text", "text": first}]},
        {"role": "user", "content": "What colour is the circle?"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[arg-type]
    wanted = tiny(text=messages, return_full_text=False)[0]["generated_text"]
    assert answer.choices[0].message.content == wanted


def test_errors_are_of_the_clients_classes(client: openai.OpenAI, scene: str) -> None:
    with pytest.raises(openai.BadRequestError, match=r"temperature must be a number from 0 to 100, got 'hot'") as found:
        client.chat.completions.create(**{**chat("Why?"), "temperature": "hot"})
    assert (found.value.param, found.value.type) == ("temperature", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="'gpt-4o' does not exist here: use 'sharegpt4v-tiny'") as missing:
        client.chat.completions.create(**{**chat("Why?"), "model": "gpt-4o"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="tools is not supported: the model cannot call tools") as refused:
        client.chat.completions.create(**chat("Why?"), tools=[{"type": "function", "function": {"name": "f"}}])
    assert refused.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="the model's context is"):
        client.chat.completions.create(**chat("long " * 3000))


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_the_base_model_and_its_adapters_are_listed(tiny: Any) -> None:
    """As vLLM lists a LoRA: `root` is what was loaded, `parent` the model that it adapts."""
    with serving(tiny, model_name="mine", base_model="my-7b", adapters=("birds:0.5", "cats")) as running:
        (listed,) = running.get("/v1/models").json()["data"]
    assert (listed["id"], listed["root"], listed["parent"]) == ("mine", "birds:0.5 + cats", "my-7b")
    assert listed["adapters"] == ["birds:0.5", "cats"]


def test_a_model_without_adapters_has_no_parent(live: Live) -> None:
    (listed,) = live.get("/v1/models").json()["data"]
    assert (listed["id"], listed["root"], listed["parent"], listed["adapters"]) == (MODEL, MODEL, None, [])

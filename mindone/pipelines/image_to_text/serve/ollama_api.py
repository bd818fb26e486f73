"""Ollama's API: fields, requests, complete answers and streams of JSON lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from .chat import Prompt, PromptBuilder, Turn
from .errors import ApiError, invalid
from .fields import Field, Fields
from .generation import FINISH_REASONS, Generation
from .json_text import dumps
from .options import Limits
from .sampling import generation_settings
from .structured_output import ollama_shape
from .value_types import Anything, Boolean, Choice, Integer, Items, ListOf, Number, Structure, Text

if TYPE_CHECKING:
    from mindone.models.share4v.generation.decoding import GenerationSettings

_MAX_IMAGES_LISTED = 1000  # in one message; the limit of a request is that of the server
_NO_TEMPLATE = "the server's template is used; none is accepted from a request"
_OTHER_SAMPLER = "this sampler is not supported"

SHOW = Fields(
    [
        Field("model", "works", "the name that /api/tags lists", Text(1000)),
        Field("name", "works", "the older name of model", Text(1000)),
        Field("verbose", "ignored", "there is nothing more to show", Boolean()),
    ]
)


@dataclass(frozen=True)
class OllamaRequest:
    """A request for a chat or a text, read and checked."""

    prompts: list[tuple[Prompt, GenerationSettings]]
    stream: bool


def option_fields(limits: Limits) -> Fields:
    """Return the fields of `options`."""
    stop = ListOf(Text(limits.stop_characters, 1), limits.stop_strings, or_one=True)
    hardware = ("numa", "f16_kv", "num_batch", "num_gpu", "main_gpu", "low_vram", "use_mmap", "use_mlock", "num_thread")
    return Fields(
        [
            Field(
                "num_predict", "works", "tokens of the answer, 256 by default; -1 or -2: as many as fit", Integer(-2)
            ),
            Field(
                "temperature", "works", "0 is greedy, the default; 1 if top_p, top_k or min_p is given", Number(0, 100)
            ),
            Field("top_k", "works", "0 keeps all tokens", Integer(0, 2**31)),
            Field("top_p", "works", "nucleus sampling", Number(0, 1, above=True)),
            Field("min_p", "works", "least probability, relative to the most probable token", Number(0, 1)),
            Field("seed", "works", "of the random numbers", Integer(0)),
            Field("stop", "works", "strings that end the answer", stop),
            Field(
                "repeat_penalty", "works", "repetition_penalty of Hugging Face's generate", Number(0, 100, above=True)
            ),
            Field("presence_penalty", "works", "as in OpenAI's API", Number(-2, 2)),
            Field("frequency_penalty", "works", "as in OpenAI's API", Number(-2, 2)),
            Field("num_ctx", "ignored", "the context is the model's", Integer(1)),
            *(Field(name, "ignored", "the server's options decide it", Anything()) for name in hardware),
            Field("num_keep", "ignored", "a prompt is never cut", Anything()),
            Field("repeat_last_n", "refused", "repeat_penalty looks at the whole sequence", neutral=(-1,)),
            Field("typical_p", "refused", _OTHER_SAMPLER, neutral=(1.0, 1)),
            Field("tfs_z", "refused", _OTHER_SAMPLER, neutral=(1.0, 1)),
            Field("mirostat", "refused", _OTHER_SAMPLER, neutral=(0,)),
            Field("mirostat_eta", "ignored", "of mirostat, which is refused"),
            Field("mirostat_tau", "ignored", "of mirostat, which is refused"),
            Field("penalize_newline", "refused", "line ends are penalized as other tokens are", neutral=(True,)),
        ]
    )


def _shared_fields() -> list[Field]:
    return [
        Field("model", "works", "the name that /api/tags lists; left out, it is that one", Text(1000)),
        Field("options", "works", "see the table of options", Structure()),
        Field("stream", "works", "JSON lines; true by default", Boolean()),
        Field("keep_alive", "ignored", "the model stays loaded"),
        Field("format", "works", '"json" or a JSON schema, which the answer matches'),
        Field("think", "refused", "the model does not think before it answers", neutral=(False,)),
        Field("logprobs", "refused", "use /v1/chat/completions", neutral=(False,)),
        Field("top_logprobs", "refused", "use /v1/chat/completions", neutral=(0,)),
    ]


def chat_fields() -> Fields:
    """Return the fields of /api/chat."""
    tools = Field("tools", "refused", "the model cannot call tools; leave it out", neutral=([],))
    messages = Field("messages", "works", "roles system, user and assistant; images as base64", Items(1000), (), True)
    return Fields([messages, *_shared_fields(), tools])


def generate_fields() -> Fields:
    """Return the fields of /api/generate."""
    images = ListOf(Text(2**31, 1), _MAX_IMAGES_LISTED)
    size = "the model makes no images"
    return Fields(
        [
            Field("prompt", "works", "the question", Text(), (), True),
            Field("system", "works", "the system message", Text()),
            Field("images", "works", "base64 of image files", images),
            *_shared_fields(),
            Field("raw", "refused", "use /v1/completions", neutral=(False,)),
            Field("template", "refused", _NO_TEMPLATE, neutral=("",)),
            Field("suffix", "refused", "the model cannot fill in the middle of a text", neutral=("",)),
            Field("context", "refused", "use /api/chat for a conversation", neutral=([],)),
            *(Field(name, "refused", size) for name in ("width", "height", "steps")),
        ]
    )


class OllamaReader:
    """Reads requests of Ollama's API.

    Args:
        builder: of prompts.
        limits: what clients may ask for.
    """

    def __init__(self, builder: PromptBuilder, limits: Limits) -> None:
        self._builder = builder
        self._limits = limits
        self._chat, self._generate = chat_fields(), generate_fields()
        self._options = option_fields(limits)

    def chat_values(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a request to /api/chat."""
        return self._with_options(self._chat.read(body))

    def generate_values(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a request to /api/generate."""
        return self._with_options(self._generate.read(body))

    def chat(self, values: Mapping[str, Any]) -> OllamaRequest:
        """Return the chat request with these values; takes time, since images are decoded."""
        turns = [_turn(message, f"messages[{index}]") for index, message in enumerate(values["messages"])]
        return self._request(turns, values)

    def generate(self, values: Mapping[str, Any]) -> OllamaRequest:
        """Return the request for a text with these values; takes time, since images are decoded."""
        turns = [Turn("system", values["system"])] if values.get("system") else []
        images = [(image, f"images[{index}]") for index, image in enumerate(values.get("images", ()))]
        return self._request([*turns, Turn("user", values["prompt"], images)], values)

    def _with_options(self, values: dict[str, Any]) -> dict[str, Any]:
        return {**values, "options": self._options.read(values.get("options", {}), "options.")}

    def _request(self, turns: list[Turn], values: Mapping[str, Any]) -> OllamaRequest:
        options = dict(values["options"])
        length = options.pop("num_predict", None)
        if length is not None:
            options["max_new_tokens"] = length if length > 0 else self._builder.context_length
        if "repeat_penalty" in options:
            options["repetition_penalty"] = options.pop("repeat_penalty")
        shape = ollama_shape(values.get("format"))
        stop = (*options.pop("stop", ()), *(() if shape else self._builder.stop_strings))
        settings = generation_settings(options, self._limits, self._builder.context_length, stop, shape=shape)
        return OllamaRequest([(self._builder.chat(turns), settings)], values.get("stream", True))


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise invalid(f'{where} must be an object with "role" and "content"', where)
    role = Choice(("system", "user", "assistant")).check(message.get("role"), f"{where}.role")
    text = Text().check(message.get("content") or "", f"{where}.content")
    images = ListOf(Text(2**31, 1), _MAX_IMAGES_LISTED).check(message.get("images") or [], f"{where}.images")
    if images and role != "user":
        raise invalid(f"{where} has the role {role} and images: only the user can send images", f"{where}.images")
    return Turn(role, text, [(image, f"{where}.images[{index}]") for index, image in enumerate(images)])


def ollama_error(error: ApiError) -> dict[str, object]:
    """Return the body of an error."""
    return {"error": error.message}


@dataclass(frozen=True)
class OllamaWriter:
    """Formats the answer to one request.

    Attributes:
        request: what was asked.
        generation: its answer.
        model: name of the model.
        is_chat: /api/chat rather than /api/generate.
    """

    request: OllamaRequest
    generation: Generation
    model: str
    is_chat: bool

    def complete(self) -> dict[str, Any]:
        """Return the body of a complete answer."""
        return {**self._line(self.generation.completions[0].text), **self._end()}

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the lines of a stream; an error becomes its last line. JSON lines have no comments, so no pings."""
        from mindone.models.share4v.generation.streaming import GenerationPiece

        try:
            while not self.generation.is_complete:
                events = await self.generation.events()
                text = "".join(event.value.text for event in events if isinstance(event.value, GenerationPiece))
                if text:
                    yield dumps({**self._line(text), "done": False}) + b"\n"
            yield dumps({**self._line(""), **self._end()}) + b"\n"
        except ApiError as error:
            yield dumps(ollama_error(error)) + b"\n"

    def _line(self, text: str) -> dict[str, Any]:
        own = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"response": text}
        return {"model": self.model, "created_at": datetime.now(timezone.utc).isoformat(), **own}

    def _end(self) -> dict[str, Any]:
        completion, submitted = self.generation.completions[0], self.generation.submitted
        started = completion.started or submitted
        first, ended = completion.first_token or started, completion.ended or started
        return {
            "done": True,
            "done_reason": FINISH_REASONS[completion.finish_reason],
            "total_duration": round((ended - submitted) * 1e9),
            "load_duration": 0,
            "prompt_eval_count": completion.prompt_tokens,
            "prompt_eval_duration": round((first - started) * 1e9),
            "eval_count": len(completion.token_ids),
            "eval_duration": round((ended - first) * 1e9),
        }

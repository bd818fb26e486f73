"""Requests of OpenAI's API: the fields of chat completions and completions, and how they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .chat import Prompt, PromptBuilder, Turn
from .errors import invalid
from .fields import Field, Fields
from .options import Limits
from .sampling import generation_settings
from .structured_output import openai_shape
from .value_types import Bias, Boolean, Choice, Integer, Items, ListOf, Number, Structure, Text

if TYPE_CHECKING:
    from mindone.models.share4v.generation.decoding import GenerationSettings

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_NO_TOOLS = "the model cannot call tools; leave it out"
_NO_AUDIO = "the model has no audio"
_NOTHING_STORED = "this server stores nothing"
_NO_TEMPLATE = "the server's template is used; none is accepted from a request"
_SCHEMA = "text, json_object, or json_schema: the answer matches it, as far as it gets before max_tokens"
_GRAMMAR = "use response_format, guided_json, guided_regex or guided_choice"


@dataclass(frozen=True)
class CompletionRequest:
    """A request for chat completions or completions, read and checked.

    Attributes:
        prompts: with their settings, one for each answer; answers to one prompt are adjacent.
        stream: send pieces as they are generated.
        include_usage: end a stream with the usage.
        return_progress: report the progress of a prompt in a stream.
        logprobs: whether log-probabilities were asked for.
        return_token_ids: add the token ids to the answer.
        stops: stop strings of the request, without the template's.
    """

    prompts: list[tuple[Prompt, GenerationSettings]]
    stream: bool
    include_usage: bool
    return_progress: bool
    logprobs: bool
    return_token_ids: bool
    stops: tuple[str, ...]


def _sampling_fields(limits: Limits) -> list[Field]:
    """Fields that chat completions and completions share."""
    stop = ListOf(Text(limits.stop_characters, 1), limits.stop_strings, or_one=True)
    return [
        Field("model", "works", "the name that /v1/models lists; left out, it is that one", Text(1000)),
        Field("max_tokens", "works", "tokens of the answer, 256 by default; more than fit are lowered", Integer(1)),
        Field(
            "temperature",
            "works",
            "0 is greedy, the default; 1 if top_p, top_k, min_p or n > 1 is given",
            Number(0, 100),
        ),
        Field("top_p", "works", "nucleus sampling", Number(0, 1, above=True)),
        Field("top_k", "works", "0 or -1 keeps all tokens", Integer(-1, 2**31)),
        Field("min_p", "works", "least probability, relative to the most probable token", Number(0, 1)),
        Field("seed", "works", "of the random numbers; the same seed gives the same text", Integer(0)),
        Field("presence_penalty", "works", "as in OpenAI's API", Number(-2, 2)),
        Field("frequency_penalty", "works", "as in OpenAI's API", Number(-2, 2)),
        Field("repetition_penalty", "works", "as in Hugging Face's generate", Number(0, 100, above=True)),
        Field("logit_bias", "works", "added to the logits of token ids", Bias(limits.logit_bias)),
        Field("n", "works", "answers to the prompt; 1 by default", Integer(1, limits.choices)),
        Field("stop", "works", "strings that end the answer; they are not part of it", stop),
        Field("min_tokens", "works", "the answer does not end before", Integer(0)),
        Field("ignore_eos", "works", "generate max_tokens tokens", Boolean()),
        Field("stream", "works", "server-sent events", Boolean()),
        Field("stream_options", "works", "include_usage", Structure(("include_usage", "include_obfuscation"))),
        Field(
            "return_progress", "works", "in a stream, report the progress of the prompt (llama.cpp's field)", Boolean()
        ),
        Field("return_token_ids", "works", "add prompt_token_ids and token_ids (vLLM's field)", Boolean()),
        Field("request_id", "works", "names the request in the access log", Text(128, 1)),
        Field("user", "ignored", "requests are not distinguished by their users", Text(1000)),
        Field("best_of", "refused", "ask for several answers with n", neutral=(1,)),
        Field("echo", "refused", "the prompt is not repeated", neutral=(False,)),
        Field(
            "use_beam_search", "refused", "beam search is offered by the command line and Python only", neutral=(False,)
        ),
        Field("length_penalty", "refused", "of beam search, which the server does not offer", neutral=(1.0, 1)),
        Field("early_stopping", "refused", "of beam search, which the server does not offer", neutral=(False,)),
        Field("stop_token_ids", "refused", "use stop", neutral=([],)),
        Field("include_stop_str_in_output", "refused", "stop strings are never part of the text", neutral=(False,)),
        Field("skip_special_tokens", "refused", "special tokens are never part of the text", neutral=(True,)),
        Field("spaces_between_special_tokens", "refused", "special tokens are never part of the text", neutral=(True,)),
        Field("priority", "refused", "requests run in the order in which they come", neutral=(0,)),
        Field("cache_salt", "refused", "all requests share the prefix cache"),
        Field("response_format", "works", _SCHEMA, Structure(("type", "json_schema"))),
        Field("guided_json", "works", "a JSON schema (vLLM's field)", Structure()),
        Field("guided_regex", "works", "a regular expression that the answer matches (vLLM's field)", Text(2**15, 1)),
        Field("guided_choice", "works", "a list of possible answers (vLLM's field)", ListOf(Text(1000, 1), 1000)),
        Field(
            "structured_outputs",
            "works",
            "json, regex or choice (vLLM's field)",
            Structure(("json", "regex", "choice")),
        ),
        *(Field(name, "refused", _GRAMMAR) for name in ("guided_grammar", "grammar", "json_schema")),
    ]


def chat_fields(limits: Limits) -> Fields:
    """Return the fields of /v1/chat/completions."""
    return Fields(
        [
            Field(
                "messages", "works", "roles system (developer), user, assistant; text and images", Items(1000), (), True
            ),
            Field("max_completion_tokens", "works", "the newer name of max_tokens, and preferred to it", Integer(1)),
            *_sampling_fields(limits),
            Field("logprobs", "works", "report the log-probability of each token", Boolean()),
            Field("top_logprobs", "works", "and of this many of the most probable tokens", Integer(0, 20)),
            Field("tools", "refused", _NO_TOOLS, neutral=([],)),
            Field("tool_choice", "refused", _NO_TOOLS, neutral=("none",)),
            Field("functions", "refused", _NO_TOOLS, neutral=([],)),
            Field("function_call", "refused", _NO_TOOLS, neutral=("none",)),
            Field("parallel_tool_calls", "ignored", "there are no tools", Boolean()),
            Field("audio", "refused", _NO_AUDIO),
            Field("modalities", "refused", _NO_AUDIO, neutral=(["text"],)),
            Field("reasoning_effort", "refused", "the model does not reason before it answers"),
            Field("verbosity", "refused", "ask for a longer or shorter answer in the prompt", neutral=("medium",)),
            Field("prediction", "refused", "leave it out"),
            Field("web_search_options", "refused", "the server searches nothing"),
            Field("moderation", "refused", "the server moderates nothing"),
            Field("store", "refused", _NOTHING_STORED, neutral=(False,)),
            Field("metadata", "ignored", _NOTHING_STORED),
            Field("service_tier", "ignored", "there is one tier"),
            Field("safety_identifier", "ignored", "requests are not distinguished by their users"),
            Field("prompt_cache_key", "ignored", "all requests share the prefix cache"),
            Field("prompt_cache_retention", "ignored", "the prefix cache has no time limit"),
            Field("prompt_cache_options", "ignored", "the prefix cache has no options"),
            Field("add_generation_prompt", "refused", "an answer always begins a turn", neutral=(True,)),
            Field("continue_final_message", "refused", "an answer always begins a turn", neutral=(False,)),
            Field("chat_template", "refused", _NO_TEMPLATE),
            Field("chat_template_kwargs", "refused", _NO_TEMPLATE, neutral=({},)),
            Field("mm_processor_kwargs", "refused", "images are processed as the checkpoint says", neutral=({},)),
            Field("documents", "refused", "write them into the prompt", neutral=([],)),
        ]
    )


def completion_fields(limits: Limits) -> Fields:
    """Return the fields of /v1/completions."""
    return Fields(
        [
            Field(
                "prompt", "works", "a string, token ids, or a list of either; no template is applied", is_required=True
            ),
            *_sampling_fields(limits),
            Field("logprobs", "works", "log-probabilities of each token and of this many others", Integer(0, 20)),
            Field("suffix", "refused", "the model cannot fill in the middle of a text", neutral=("",)),
        ]
    )


class OpenAIReader:
    """Reads requests of OpenAI's API.

    Args:
        builder: of prompts.
        limits: what clients may ask for.
    """

    def __init__(self, builder: PromptBuilder, limits: Limits) -> None:
        self._builder = builder
        self._limits = limits
        self._chat_fields, self._completion_fields = chat_fields(limits), completion_fields(limits)

    def chat_values(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a chat completions request."""
        values = self._chat_fields.read(body)
        if "top_logprobs" in values and not values.get("logprobs"):
            raise invalid("top_logprobs needs logprobs: set logprobs to true", "top_logprobs")
        return values

    def completion_values(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a completions request."""
        return self._completion_fields.read(body)

    def chat(self, values: Mapping[str, Any]) -> CompletionRequest:
        """Return the chat completions request with these values; takes time, since images are decoded."""
        logprobs = values.get("top_logprobs", 0) if values.get("logprobs") else None
        settings = self._settings(values, self._builder.stop_strings, logprobs)
        prompt = self._builder.chat(read_messages(values["messages"]))
        return self._request(values, [(prompt, one) for one in settings], logprobs)

    def completion(self, values: Mapping[str, Any]) -> CompletionRequest:
        """Return the completions request with these values; takes time, since texts are tokenized."""
        logprobs = values.get("logprobs")
        settings = self._settings(values, (), logprobs)
        prompts = self._prompts(values["prompt"])
        return self._request(values, [(prompt, one) for prompt in prompts for one in settings], logprobs)

    def answers(self, values: Mapping[str, Any]) -> int:
        """Return how many answers a request asks for, before its images are decoded.

        Raises:
            ApiError: (400) more than the limit.
        """
        prompt = values.get("prompt")
        prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
        count = prompts * values.get("n", 1)
        if count > self._limits.choices:
            raise invalid(f"prompt and n ask for {count} answers, more than the limit of {self._limits.choices}", "n")
        return count

    def _settings(
        self, values: Mapping[str, Any], stop: tuple[str, ...], logprobs: int | None
    ) -> list[GenerationSettings]:
        """Return the settings of each answer to a prompt."""
        renamed = dict(values)
        longest = values.get("max_completion_tokens", values.get("max_tokens"))
        if longest is not None:
            renamed["max_new_tokens"] = longest
        if "min_tokens" in values:
            renamed["min_new_tokens"] = values["min_tokens"]
        count = values.get("n", 1)
        shape, _ = openai_shape(values)
        stops = (*values.get("stop", ()), *(() if shape else stop))  # the template's would cut a text of the schema
        if shape and values.get("ignore_eos"):
            raise invalid("ignore_eos cannot be combined with structured output: leave one of them out", "ignore_eos")
        settings = generation_settings(
            renamed, self._limits, self._builder.context_length, stops, count, logprobs, shape
        )
        if settings.num_return_sequences == 1:  # one answer, or greedy ones, which are all the same
            return [settings] * count
        return [settings.for_sequence(number) for number in range(count)]

    def _request(
        self, values: Mapping[str, Any], prompts: list[tuple[Prompt, GenerationSettings]], logprobs: int | None
    ) -> CompletionRequest:
        return CompletionRequest(
            prompts,
            stream=values.get("stream", False),
            include_usage=bool(values.get("stream_options", {}).get("include_usage")),
            return_progress=values.get("return_progress", False),
            logprobs=logprobs is not None,
            return_token_ids=values.get("return_token_ids", False),
            stops=values.get("stop", ()),
        )

    def _prompts(self, given: Any) -> list[Prompt]:
        many = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
        return [self._one_prompt(one) for one in many]

    def _one_prompt(self, given: Any) -> Prompt:
        if isinstance(given, str):
            return self._builder.text(given)
        if isinstance(given, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in given):
            return self._builder.ids(given)
        raise invalid("prompt must be a string, a list of token ids, or a list of either", "prompt")


def read_messages(messages: list[Any]) -> list[Turn]:
    """Return the messages of OpenAI's format as turns.

    Raises:
        ApiError: (400) a message or a part is malformed; the error names it.
    """
    return [_turn(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _turn(message: Any, where: str) -> Turn:
    if not isinstance(message, dict):
        raise invalid(f'{where} must be an object with "role" and "content"', where)
    role = Choice(tuple(_ROLES)).check(message.get("role"), f"{where}.role")
    for name in ("tool_calls", "function_call", "audio"):
        if message.get(name):
            raise invalid(f"{where}.{name} is not supported: leave it out", f"{where}.{name}", "unsupported_parameter")
    content = message.get("content")
    if isinstance(content, str):
        return Turn(_ROLES[role], content)
    if not isinstance(content, list):
        raise invalid(f"{where}.content must be a string or a list of parts", f"{where}.content")
    turn = Turn(_ROLES[role], "")
    for index, part in enumerate(content):
        _add_part(turn, part, f"{where}.content[{index}]")
    return turn


def _add_part(turn: Turn, part: Any, where: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "input_text", "output_text"):
        turn.text += Text().check(part.get("text"), f"{where}.text")
    elif kind == "refusal":
        turn.text += Text().check(part.get("refusal"), f"{where}.refusal")
    elif kind in ("image_url", "input_image"):
        if turn.role != "user":
            raise invalid(
                f"{where} is an image in a message of the role {turn.role}: only the user can send images", where
            )
        image = part.get("image_url")
        if isinstance(image, dict):
            Choice(("auto", "low", "high", "original")).check(
                image.get("detail") or "auto", f"{where}.image_url.detail"
            )
            image = image.get("url")
        turn.images.append((Text(2**31, 1).check(image, f"{where}.image_url"), f"{where}.image_url"))
    else:
        raise invalid(f'{where} must be a part of the type "text" or "image_url"', where, "unsupported_parameter")

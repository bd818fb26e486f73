"""Generation settings from the fields of a request; every API's names are mapped to those of `generate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import invalid
from .options import Limits

if TYPE_CHECKING:
    from mindone.models.share4v.generation.decoding import GenerationSettings

# Names of `generate` that requests use as they are.
SAME_NAMES = ("top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "seed")


def generation_settings(
    values: Mapping[str, Any],
    limits: Limits,
    context_length: int,
    stop: tuple[str, ...] = (),
    choices: int = 1,
    logprobs: int | None = None,
    shape: Mapping[str, Any] | None = None,
) -> GenerationSettings:
    """Return the settings of a request.

    Without a temperature an answer is greedy, as everywhere in this package, unless the request asks for sampling by
    another field: top_p, top_k or min_p, or several choices. Then it is 1, as in OpenAI's API.

    Args:
        values: the fields of the request, under the names of `generate` where those differ from the API's.
        limits: maximum number of new tokens.
        context_length: of the model.
        stop: the template's and the request's stop strings.
        choices: answers to the prompt.
        logprobs: as in GenerationSettings.
        shape: schema or regex, as in GenerationSettings.

    Raises:
        ApiError: (400) the settings contradict each other.
    """
    from mindone.models.share4v.generation.decoding import MAX_NEW_TOKENS, GenerationSettings

    top_k = max(values.get("top_k", 0), 0)  # -1 is "all" in vLLM's API
    asks = values.get("top_p", 1.0) < 1 or top_k > 0 or values.get("min_p", 0.0) > 0 or choices > 1
    temperature = values.get("temperature", 1.0 if asks else 0.0)
    longest = min(limits.new_tokens or context_length, context_length)
    max_new_tokens = min(values.get("max_new_tokens", MAX_NEW_TOKENS), longest)
    arguments = {name: values[name] for name in SAME_NAMES if name in values}
    arguments |= {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": max_new_tokens if values.get("ignore_eos") else values.get("min_new_tokens", 0),
        "do_sample": temperature > 0,
        "temperature": temperature,
        "top_k": top_k,
        "stop": stop,
        "num_return_sequences": choices if temperature > 0 else 1,
        "logprobs": logprobs,
        **(shape or {}),
    }
    try:
        return GenerationSettings.from_arguments(arguments)
    except ValueError as error:
        raise invalid(str(error)) from error

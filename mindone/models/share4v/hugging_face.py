"""Arguments that users of Hugging Face's libraries type: which are accepted, which have no effect, what to use instead.

`ARGUMENTS` is the only place that lists them, for all functions; the page "For Hugging Face users" is checked against
it. An argument that is neither there nor one of a function's own is an error with the closest name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from .suggestions import unknown

_log = logging.getLogger(__name__)
# The functions: from_pretrained of a model, and of a config or processor; a processor's call; generate and stream;
# pipeline(); a pipeline's call.
MODEL, FILES, PROCESSOR = "model loading", "processor loading", "processor"
GENERATE, PIPELINE, CALL = "generate", "pipeline", "pipeline call"
LOADING = (MODEL, FILES, PIPELINE)
GENERATING = (GENERATE, PIPELINE, CALL)


def _any(value: object) -> bool:
    return True


def _never(value: object) -> bool:
    return False


def _off(value: object) -> bool:
    return not value


def _one_of(*values: object) -> Callable[[object], bool]:
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def _is_own_device(value: object) -> bool:
    """Return whether a value of device= or device_map= means the device that MindSpore uses."""
    from mindspore import get_context

    target = str(get_context("device_target")).lower()
    names = {"cpu": ("cpu", "-1"), "ascend": ("ascend", "npu")}.get(target, (target,))
    if isinstance(value, Mapping):
        return all(map(_is_own_device, value.values()))
    return str(value).lower().partition(":")[0] in ("auto", *names)


@dataclass(frozen=True)
class Argument:
    """An argument of Hugging Face's functions that has no meaning of its own here. None is always accepted.

    Attributes:
        name: of the argument.
        places: the functions that know it, such as GENERATE.
        is_harmless: whether a value asks for nothing that is not the case anyway; it is accepted silently.
        note: said once for any other value, which is then ignored.
        instead: what to use instead; any other value is an error that says so. Empty if there is a note.
    """

    name: str
    places: tuple[str, ...]
    is_harmless: Callable[[object], bool] = _never
    note: str = ""
    instead: str = ""


_DEVICE = "the model runs on MindSpore's device: leave it out, or choose with mindspore.set_device(...)"
_WEIGHTS = "weights are quantized by dtype: pass dtype='int8' or dtype='int4'"
_BIAS = "pass logit_bias={id: -100} for single tokens, or for words forbid= of caption_dataset"
_STOPPING = "pass stop=[...] with the texts that end an answer, or break out of model.stream(...)"
_BEAMS = "only plain beam search exists: pass num_beams and length_penalty"
_SAMPLING = "choose with temperature, top_k, top_p and min_p"
_RICH = "the result is a list of ids with the attributes finish_reasons and logprobs: pass logprobs=k for probabilities"

ARGUMENTS: tuple[Argument, ...] = (
    Argument("device", (MODEL, PIPELINE, CALL, PROCESSOR), _is_own_device, instead=_DEVICE),
    Argument("device_map", (MODEL, PIPELINE), _is_own_device, instead=_DEVICE),
    Argument("max_memory", (MODEL, PIPELINE), instead="the model is on one device: pass dtype='int4' to use less"),
    Argument("offload_folder", (MODEL,), instead="weights of a converted checkpoint are mapped: use share4v convert"),
    Argument("trust_remote_code", LOADING, _any),
    Argument("use_fast", LOADING, _any),
    Argument("use_safetensors", LOADING, _one_of(True), note="weights are read from the files that the checkpoint has"),
    Argument("low_cpu_mem_usage", LOADING, _any),
    Argument("attn_implementation", LOADING, _one_of("eager", "sdpa"), note="there is one implementation of attention"),
    Argument("framework", (PIPELINE,), _one_of("ms"), instead="the framework is always MindSpore: leave it out"),
    Argument("resume_download", LOADING, _any),
    Argument("force_download", LOADING, _off, instead="delete the checkpoint's directory in cache_dir"),
    Argument("proxies", LOADING, instead="set the environment variables HTTPS_PROXY and HTTP_PROXY"),
    Argument("use_auth_token", LOADING, instead="pass token="),
    Argument("variant", LOADING, instead="pass dtype= for the type of the weights, and subfolder= for a folder"),
    Argument("load_in_8bit", (MODEL, PIPELINE), _off, instead="pass dtype='int8'"),
    Argument("load_in_4bit", (MODEL, PIPELINE), _off, instead="pass dtype='int4'"),
    Argument("quantization_config", (MODEL, PIPELINE), instead=_WEIGHTS),
    Argument("config", (MODEL, PIPELINE), instead="the config is that of the checkpoint: use Share4V(config) to train"),
    Argument(
        "gguf_file", LOADING, instead="name it with the repository, as 'owner/name:FILE', or pass the file's path"
    ),
    Argument("adapter_name", (MODEL,), instead="pass adapter= with the adapter's directory, or owner/name on a hub"),
    Argument("adapter_kwargs", (MODEL,), _off, instead="pass adapter= with the adapter's directory"),
    Argument("output_loading_info", (MODEL,), _off, instead="loading is strict: a missing weight is an error"),
    Argument("ignore_mismatched_sizes", (MODEL,), _off, instead="loading is strict: correct the checkpoint"),
    Argument("tokenizer", (PIPELINE,), instead="pass processor="),
    Argument("image_processor", (PIPELINE,), instead="pass processor="),
    Argument("feature_extractor", (PIPELINE,), instead="pass processor="),
    Argument("num_workers", (PIPELINE, CALL), _one_of(0), note="images are decoded in the calling thread"),
    Argument("binary_output", (PIPELINE,), _any),
    Argument("chat_template", (PROCESSOR, CALL), instead="pass conversation= with the name of a template"),
    Argument("padding", (PROCESSOR, CALL), _one_of(True, "longest"), note="a batch is padded to its longest"),
    Argument("padding_side", (PROCESSOR,), _one_of("left"), instead="prompts are padded on the left: leave it out"),
    Argument("truncation", (PROCESSOR, CALL), _off, instead="a prompt is never cut: shorten the text"),
    Argument("max_length", (PROCESSOR,), instead="a prompt is never cut or padded to a length: leave it out"),
    Argument("add_special_tokens", (PROCESSOR,), _one_of(True), instead="use processor.tokenizer(text, ...)"),
    Argument("do_rescale", (PROCESSOR,), _one_of(True), instead="pass pixels as uint8, or as float in [0, 1]"),
    Argument("return_dict", (PROCESSOR,), _one_of(True), instead="take the entry that you need, such as .input_ids"),
    Argument("streamer", GENERATING, instead="pass it to generate or a pipeline's call; stream yields pieces"),
    Argument("use_cache", GENERATING, _one_of(True), note="keys and values are always cached"),
    Argument("pad_token_id", GENERATING, _any),
    Argument("bos_token_id", GENERATING, _any),
    Argument("tokenizer", (GENERATE, CALL), _any),
    Argument("generation_config", GENERATING, instead="pass its fields as arguments, or set model.generation_config"),
    Argument("inputs", (GENERATE,), instead="pass input_ids="),
    Argument("images", (GENERATE,), instead="pass pixel_values=, which processor(images=..., text=...) returns"),
    Argument("images", (CALL,), instead="pass the image, or a list of images, as the first argument"),
    Argument("text", (CALL,), instead="pass prompt=, or use the task 'image-text-to-text'"),
    Argument("question", (CALL,), instead="pass prompt= to 'image-to-text', text= to 'image-text-to-text'"),
    Argument("messages", (CALL,), instead="pass the messages as text= to the task 'image-text-to-text'"),
    Argument("stopping_criteria", GENERATING, instead=_STOPPING),
    Argument("logits_processor", GENERATING, instead="pass logit_bias, no_repeat_ngram_size or a penalty"),
    Argument("prefix_allowed_tokens_fn", GENERATING, instead="generation.engine.Request has `forbidden`"),
    Argument("max_length", GENERATING, instead="pass max_new_tokens, which does not count the prompt"),
    Argument("min_length", GENERATING, _off, instead="pass min_new_tokens, which does not count the prompt"),
    Argument("max_time", GENERATING, instead="break out of model.stream(...) when the time is over"),
    Argument("early_stopping", GENERATING, _off, instead="beams end when none can get better: leave it out"),
    Argument("num_beam_groups", GENERATING, _one_of(1), instead=_BEAMS),
    Argument("diversity_penalty", GENERATING, _off, instead=_BEAMS),
    Argument("bad_words_ids", GENERATING, instead=_BIAS),
    Argument("suppress_tokens", GENERATING, instead=_BIAS),
    Argument("sequence_bias", GENERATING, instead="pass logit_bias={id: bias}"),
    Argument("typical_p", GENERATING, _one_of(1.0, 1), instead=_SAMPLING),
    Argument("epsilon_cutoff", GENERATING, _off, instead=_SAMPLING),
    Argument("eta_cutoff", GENERATING, _off, instead=_SAMPLING),
    Argument("penalty_alpha", GENERATING, _off, instead=_SAMPLING),
    Argument("top_h", GENERATING, instead=_SAMPLING),
    Argument("guidance_scale", GENERATING, _one_of(1, 1.0), instead="there is no guidance: leave it out"),
    Argument("renormalize_logits", GENERATING, _any),
    Argument("remove_invalid_values", GENERATING, _off, instead="logits that are not finite are an error"),
    Argument("cache_implementation", GENERATING, note="there is one implementation of the KV cache"),
    Argument("return_dict_in_generate", GENERATING, _off, instead=_RICH),
    Argument("output_scores", GENERATING, _off, instead=_RICH),
    Argument("output_logits", GENERATING, _off, instead=_RICH),
    Argument("output_attentions", GENERATING, _off, instead="attention weights are not kept: leave it out"),
    Argument("output_hidden_states", GENERATING, _off, instead="hidden states are not kept: leave it out"),
    Argument("synced_gpus", GENERATING, _off, instead="there are no GPUs to keep in step: leave it out"),
    Argument("assistant_model", GENERATING, instead="there is no speculative decoding: leave it out"),
    Argument("prompt_lookup_num_tokens", GENERATING, instead="there is no speculative decoding: leave it out"),
    Argument("image_sizes", GENERATING, _any),
    Argument("clean_up_tokenization_spaces", (CALL, PIPELINE), _off, instead="it would change the answer"),
    Argument("skip_special_tokens", (CALL, PIPELINE), _one_of(True), instead="decode model.generate's ids"),
    Argument("return_tensors", (CALL, PIPELINE), _off, instead="use model.generate, which returns ids"),
    Argument("return_type", (CALL, PIPELINE), instead="pass return_full_text"),
)


def find(name: str, place: str) -> Argument | None:
    """Return the row of an argument for a function, None if there is none."""
    return next((row for row in ARGUMENTS if row.name == name and place in row.places), None)


def check_arguments(place: str, arguments: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check arguments that are not a function's own; those that remain are harmless.

    Args:
        place: the function, such as GENERATE.
        arguments: names and values.
        known: the function's own arguments, for "did you mean".

    Raises:
        TypeError: a name is unknown.
        ValueError: an argument asks for something that is not supported; the message says what to use instead.

    Example:
        >>> from mindone.models.share4v.hugging_face import check_arguments
        >>> check_arguments("generate", {"use_cache": True, "pad_token_id": 0}, ["max_new_tokens"])
    """
    for name, value in arguments.items():
        row = find(name, place)
        if row is None:
            raise TypeError(unknown(f"argument of {place}", name, [*known]))
        if value is None or row.is_harmless(value):
            continue
        if row.instead:
            raise ValueError(f"{name}={value!r:.60} is not supported: {row.instead}")
        _say_once(f"{name}={value!r:.60} has no effect: {row.note}")


def split_arguments(
    place: str,
    arguments: Mapping[str, Any],
    known: Iterable[str],
    aliases: Mapping[str, str],
    others: Iterable[str] = (),
) -> dict[str, Any]:
    """Return the arguments that are a function's own, by the names that they have here; the others are checked.

    Args:
        place, known: as in `check_arguments`.
        arguments: names and values; None means "not set" and is left out.
        aliases: Hugging Face's name -> ours, for arguments of the same meaning.
        others: the function's other arguments, for "did you mean".

    Raises:
        TypeError, ValueError: as `check_arguments`, and if an argument is given under both names.
    """
    names = list(known)
    own: dict[str, Any] = {}
    for name, value in arguments.items():
        ours = aliases.get(name, name)
        if ours not in names:
            check_arguments(place, {name: value}, (*names, *others))
        elif value is not None:
            if ours in own:
                others = " and ".join(sorted(alias for alias in arguments if aliases.get(alias) == ours))
                raise ValueError(f"{ours} is given twice, also as {others}: remove one of them")
            own[ours] = value
    return own


def check_device(device: object) -> None:
    """Check the device in `.to(device)`.

    Raises:
        ValueError: it is not the one that MindSpore uses.
    """
    if device is not None and not _is_own_device(device):
        raise ValueError(f"device {device!r} is not the one in use: {_DEVICE}")


@cache
def _say_once(message: str) -> None:
    _log.warning("%s", message)

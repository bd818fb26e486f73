"""Every setting of a captioning job, as frozen dataclasses that can be sent to another process.

Each setting is documented once, here or in ReaderOptions, WriterOptions, TextRules and PromptPlan, which are in the
folders that use them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from mindone.models.share4v.load_options import LoadOptions, adapter_weights
from mindone.models.share4v.suggestions import unknown

from .prompts.plan import PromptPlan
from .prompts.styles import get_style
from .prompts.variables import variables_of
from .readers.downloads import DownloadOptions
from .rules.retries import RETRIES
from .rules.text_rules import TextRules
from .state.existing_captions import MODES
from .writers import WriterOptions

_RULE_ARGUMENTS = {"openings": "strip"}  # field of TextRules -> argument of caption_dataset
FAULT_MODES = ("keep", "fail")
AUTO = "auto"  # number of replicas that suits the machine
NEAR_EQUAL_MODES = ("note", "once")
WITHOUT_EFFECT = ("cache_dir", "local_files_only", "token", "numa")  # options of loading that change no caption
# Settings of `generate` that are part of a job's description only if they are given.
_OPTIONAL = ("min_p", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size")


@dataclass(frozen=True, kw_only=True)
class ModelChoice(LoadOptions):
    """Which model captions, and how it is loaded: arguments of `mindone.pipelines.pipeline`.

    Attributes:
        model: name or directory of a checkpoint.
        conversation: name of the conversation template; by default the checkpoint's.
    """

    model: str | Path = "sharegpt4v-tiny"
    conversation: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("model", "vision_tower", "cache_dir"):  # a job's description is JSON
            if isinstance(getattr(self, name), Path):
                object.__setattr__(self, name, str(getattr(self, name)))

    @property
    def description(self) -> dict[str, Any]:
        """The fields that affect captions, for a job's description: no token, and no place on this machine.

        The fields that were added later are left out if they are not set, so that older jobs can be resumed.
        """
        values = {name: value for name, value in asdict(self).items() if name not in WITHOUT_EFFECT}
        values["adapter"] = self._adapters
        newer = ("revision", "subfolder", "adapter")
        return {name: value for name, value in values.items() if value or name not in newer}

    @property
    def name(self) -> str:
        """What records call the model: its name or directory, and those of its adapters with their weights."""
        return " + ".join([str(self.model), *self._adapters])

    @property
    def _adapters(self) -> list[str]:
        """The adapters as the command line names them: DIR:WEIGHT, or DIR for the weight 1."""
        given = adapter_weights(self.adapter).items()
        return [path if weight == 1 else f"{path}:{weight}" for path, weight in given]


@dataclass(frozen=True, kw_only=True)
class CaptioningSettings:
    """How captions are generated.

    Attributes:
        max_new_tokens: maximum number of tokens per caption; by default the style's, 256 for a prompt without a style.
        min_new_tokens: minimum number of tokens per caption.
        temperature: above 0, tokens are sampled; 0 is greedy decoding.
        top_p, top_k: with sampling, draw only from the most probable tokens, as in `generate`.
        repetition_penalty: above 1, discourages repetition.
        min_p, presence_penalty, frequency_penalty, no_repeat_ngram_size: as in `generate`.
        stop: strings that end a caption.
        schema: JSON schema that every caption matches, also one that would be longer than max_new_tokens: it is then
            completed in a short way, and its finish reason is "length" or "context". Needs llguidance.
        rules: rules for the text, in addition to those of its style.
        begin_with: text that every caption begins with; may contain variables, as prompts may.
        attempts: maximum number of attempts for a caption that breaks a rule.
        seed: of all random choices; also of a plan that the keyword arguments make.
        batch_size: number of captions that are generated together; changes the speed only.
        workers: number of threads that read and decode images.
        max_image_pixels: maximum number of pixels of an image; by default what Pillow opens, 178,956,970.
        downloads: how images at URLs are downloaded.
        texts: named texts that every image gets in place of one caption, each with settings of its own.

    Raises:
        ValueError: a value is out of range, or a setting would change or cut a caption that matches the schema.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float = 1.0
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    stop: tuple[str, ...] = ()
    schema: Mapping[str, Any] | None = field(default=None, hash=False)
    rules: TextRules = field(default_factory=TextRules)
    begin_with: str = ""
    attempts: int = 3
    seed: int = 0
    batch_size: int = 8
    workers: int = 2
    max_image_pixels: int | None = None
    downloads: DownloadOptions = field(default_factory=DownloadOptions)
    texts: tuple[NamedText, ...] = ()

    def __post_init__(self) -> None:
        _check_positive_integers(self, "batch_size", "workers")
        if self.max_image_pixels is not None:
            _check_positive_integers(self, "max_image_pixels")
        variables_of(self.begin_with, "begin_with")
        if not 1 <= self.attempts <= len(RETRIES):
            raise ValueError(f"attempts must be 1 to {len(RETRIES)}, got {self.attempts}")
        if self.schema is not None:
            changes = [name for name in ("stop", "begin_with") if getattr(self, name)]
            changes += [_RULE_ARGUMENTS.get(name, name) for name in self.rules.changing]
            if changes:
                raise ValueError(
                    f"schema and {changes[0]} cannot be combined: {changes[0]} would change the JSON; leave it out"
                )

    @property
    def generation(self) -> dict[str, Any]:
        """The keyword arguments of `generate`; records store them. Each caption gets its own seed, from `seed`."""
        arguments = {
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "temperature": self.temperature,
            "repetition_penalty": self.repetition_penalty,
            "top_p": self.top_p,
            "top_k": self.top_k,
            **{name: getattr(self, name) for name in _OPTIONAL},
            "stop": self.stop,
            "schema": self.schema,
            "do_sample": self.temperature > 0,
        }
        return {name: value for name, value in arguments.items() if value is not None}

    @property
    def recorded(self) -> dict[str, Any]:
        """What records store of `generation`: all but the schema, of which they have a digest; by text, if named."""
        if self.texts:
            return {text.name: text.settings.recorded for text in self.texts}
        generation = self.generation
        schema = generation.pop("schema", None)
        if schema is None:
            return generation
        return {**generation, "schema_sha256": sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()}

    def of_text(self, name: str) -> CaptioningSettings:
        """Return the settings of a named text; of "", which has no name, these."""
        return next((text.settings for text in self.texts if text.name == name), self)

    @property
    def blind_texts(self) -> frozenset[str]:
        """Names of the texts for which the model does not see the image."""
        return frozenset(text.name for text in self.texts if not text.sees_image)

    def of_style(self, style: str | None) -> tuple[dict[str, Any], TextRules]:
        """Return the keyword arguments of `generate` and the rules for captions of a style, or of None.

        Raises:
            ValueError: the style is unknown, or contradicts these settings.
        """
        if style is None:
            return self.generation, self.rules
        chosen = get_style(style)
        generation = {"max_new_tokens": chosen.max_new_tokens, **self.generation}
        try:
            rules = chosen.rules.combine(self.rules)
        except ValueError as error:
            raise ValueError(f"the style {style!r} cannot be combined with these settings: {error}") from error
        if self.schema is not None and rules.changing:
            raise ValueError(
                f"schema and the style {style!r} cannot be combined: the style changes captions, which would then not "
                "match; ask with a prompt, or choose another style"
            )
        if self.min_new_tokens > generation["max_new_tokens"]:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, but the style {style!r} ends a caption after "
                f"{generation['max_new_tokens']} tokens: set max_new_tokens too"
            )
        return generation, rules


@dataclass(frozen=True, kw_only=True)
class NamedText:
    """One of several texts that every image gets; made from a `TextSpec` and the job's settings.

    Attributes:
        name: of the text; "" in a job without named texts.
        plan: its prompts; one caption for each image.
        settings: how it is generated.
        sees_image: whether the model sees the image.
        template, fit: what is written in place of the text, and its token budgets; None: the job's.
    """

    name: str
    plan: PromptPlan
    settings: CaptioningSettings
    sees_image: bool = True
    template: str | None = None
    fit: tuple[str, ...] | None = None

    @property
    def description(self) -> dict[str, Any]:
        """All settings that affect the text, as JSON values."""
        return {
            "prompts": self.plan.to_json(),
            "image": self.sees_image,
            "captions": {
                "generation": self.settings.generation,
                "rules": asdict(self.settings.rules),
                "beginning": self.settings.begin_with,
                "attempts": self.settings.attempts,
                "seed": self.settings.seed,
            },
        }


@dataclass(frozen=True, kw_only=True)
class ExecutorOptions:
    """Resources of the engines "replicas", "ray" and "http"; the other engines ignore them.

    Attributes:
        replicas: replicas: number of processes on this machine, each with cores of its own, that share one converted
            checkpoint; or "auto": 1 below 16 cores or without a converted checkpoint, otherwise one for every 8 cores.
        actors: Ray: number of actors, each with its own model.
        cpus: Ray: CPUs per actor.
        block: Ray: number of inputs that an actor processes at a time.
        endpoints: HTTP: addresses of OpenAI-compatible APIs, such as "http://localhost:8000/v1".
        api_key_env: HTTP: name of the environment variable with the API key; the key itself is never stored.
        max_in_flight: HTTP: maximum number of requests in flight at each endpoint.
        image_size: HTTP: images with a longer side are scaled down to so many pixels; 0 scales none.
        request_timeout: HTTP: seconds after which a request without a complete answer is given up.
        request_fields: HTTP: further fields of every request, such as {"top_k": 20} for vLLM.

    Raises:
        ValueError: a value is out of range.
    """

    replicas: int | str = AUTO
    actors: int = 1
    cpus: int = 1
    block: int = 64
    endpoints: tuple[str, ...] = ()
    api_key_env: str | None = None
    max_in_flight: int = 64
    image_size: int = 1024
    request_timeout: float = 300.0
    request_fields: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        _check_positive_integers(self, "actors", "cpus", "block", "max_in_flight")
        if self.replicas != AUTO:
            _check_positive_integers(self, "replicas")
        if not isinstance(self.image_size, int) or self.image_size < 0:
            raise ValueError(f"image_size must be a number of pixels, or 0 to scale no image, got {self.image_size!r}")
        if not self.request_timeout > 0:
            raise ValueError(f"request_timeout must be a number of seconds above 0, got {self.request_timeout!r}")
        if not isinstance(self.request_fields, Mapping):
            raise ValueError(f"request_fields must be a JSON object, got {self.request_fields!r}")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Where a job's results go, and how it runs.

    Attributes:
        out: output file or directory; None writes a .txt file beside each image.
        formats: names of output formats (the keys of `writers.WRITERS`); by default chosen by the suffix of `out`.
        existing: what to do with existing captions: "skip" (keep them), "overwrite", "append" or "prepend".
        on_fault: what to do with captions that break a rule after the last attempt: "keep" (write them, with a note) or
            "fail" (the input fails; failed.jsonl has the rule and the captions).
        overwrite: replace an output file that exists and that this job did not write; by default that is an error.
        writers: how outputs are written.
        engine: where to run: "local", "replicas", "ray", "msrun" or "http"; by default "msrun" in a process that msrun
            started, "replicas" if the number of replicas is above 1, else "local".
        executor: resources of the engines "replicas", "ray" and "http".
        state: the job's state directory; by default beside the output.
        restart: discard the progress of an earlier run, and start from the beginning.
        retry_failed: caption the inputs that failed again; all other records are kept. The rules, `attempts` and
            `on_fault` may differ from those of the earlier run.
        limit: process only the first inputs, this many; inputs that have a record already stay. A later run with a
            larger limit, or without one, continues with the others.
        near_equal: what to do with an image that nearly equals an earlier one, as a copy of another size or format
            does: "note" it in its record, or caption only the first of them "once" and give the others its captions.
            Both read all images once before the first caption. By default neither; reports show them in any case.
        dry_run: only report what the job would do: nothing is written and no model is loaded.
        adopt: take over a job that was moved, copied, shared, or started by an older version: list the inputs again,
            match them with the job's records, and sign its state directory. Without it, such state is rejected.

    Raises:
        ValueError: `existing`, `on_fault` or `near_equal` is unknown, or they cannot be combined; `limit` is less than
            1, or `restart` is set together with `retry_failed` or `adopt`.
    """

    out: str | None = None
    formats: tuple[str, ...] = ()
    existing: str = "skip"
    on_fault: str = "keep"
    overwrite: bool = False
    writers: WriterOptions = field(default_factory=WriterOptions)
    engine: str | None = None
    executor: ExecutorOptions = field(default_factory=ExecutorOptions)
    state: str | None = None
    restart: bool = False
    retry_failed: bool = False
    adopt: bool = False
    limit: int | None = None
    near_equal: str | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None:
            _check_positive_integers(self, "limit")
        if self.restart and self.retry_failed:
            raise ValueError("restart and retry_failed cannot be combined: restart discards all records")
        if self.restart and self.adopt:
            raise ValueError(
                "restart and adopt cannot be combined: restart discards what adopt takes over; delete the state "
                "directory to start over"
            )
        if self.existing not in MODES:
            raise ValueError(unknown("value of existing", self.existing, MODES))
        if self.on_fault not in FAULT_MODES:
            raise ValueError(unknown("value of on_fault", self.on_fault, FAULT_MODES))
        if self.near_equal is not None and self.near_equal not in NEAR_EQUAL_MODES:
            raise ValueError(unknown("value of near_equal", self.near_equal, NEAR_EQUAL_MODES))
        if self.near_equal == "once" and self.existing in ("append", "prepend"):
            raise ValueError(
                f"near_equal 'once' and existing {self.existing!r} cannot be combined: the existing caption of one "
                "image would get into those of others; use near_equal 'note'"
            )


def _check_positive_integers(options: object, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")

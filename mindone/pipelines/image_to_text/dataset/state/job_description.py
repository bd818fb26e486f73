"""The settings of a job as stored in job.json, and the error about a job that is resumed with other settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .records import JobError

# Dotted name in job.json -> argument of `caption_dataset`, if the last part of the name is not the argument's name.
# None: follows from another setting.
_ARGUMENTS: dict[str, str | None] = {
    "captions.beginning": "begin_with",
    "captions.generation.do_sample": None,
    "captions.rules.forbidden_words": "forbid",
    "captions.rules.openings": "strip",
    "captions.rules.required_words": "require",
    "formats": "format",
    "model.adapter_files": "adapter",
    "model.model_files.model": "model",
    "model.model_files.vision_tower": "vision_tower",
    "model.model_files.adapter": "adapter",
    "prompts.every": "every_prompt",
    "prompts.prompts": "prompt",
    "sources.caption_root": "caption_root",
    "sources.frame_mode": "frame_grid",
    "sources.ignored": None,
}
_MODEL_FILES = "model_files"  # digests by part; a part that is not in both descriptions is unknown, and no difference
# Outputs are written again if these differ; the records remain valid.
_OF_OUTPUTS = ("sinks.template", "sinks.fit", "sinks.text_templates", "sinks.text_fits")
# A pass that captions only the inputs that failed may have other values of these; the other records remain valid.
_OF_RETRIES = re.compile(r"(?:texts\.[\w-]+\.)?captions\.(?:rules\.|attempts|on_fault)")
_MAX_SHOWN = 3  # changed settings in a message
_MAX_TEXT = 80  # characters of a value in a message


@dataclass(frozen=True)
class SettingChange:
    """A setting that differs between two descriptions: the argument's name, and its values as text.

    Attributes:
        is_of_retries: whether a pass over the inputs that failed may have the new value.
    """

    argument: str
    before: str
    now: str
    is_of_retries: bool = False


class SettingsChangedError(JobError):
    """A job that has records, or answers for them, is resumed with other settings.

    Args:
        directory: state directory of the job.
        records: number of inputs that have a record.
        changes: the settings that differ.
        existing: what the job now does with existing captions.
        answers: number of answers, which matters if there is no record.
    """

    def __init__(
        self,
        directory: Path,
        records: int,
        changes: tuple[SettingChange, ...],
        existing: str = "skip",
        answers: int = 0,
    ) -> None:
        self.directory, self.records, self.changes, self.existing = directory, records, changes, existing
        self.answers = answers
        super().__init__(self.explain(lambda name: name))

    def explain(self, shown_name: Callable[[str], str]) -> str:
        """Return the message; `shown_name` turns an argument's name into what the reader knows, such as its flag."""
        changes = [f"{shown_name(one.argument)} was {one.before}, now {one.now}" for one in self.changes[:_MAX_SHOWN]]
        if len(self.changes) > _MAX_SHOWN:
            changes.append(f"{len(self.changes) - _MAX_SHOWN} more settings differ")
        retry = ""
        if self.records and all(one.is_of_retries for one in self.changes):
            retry = f"To caption only the inputs that failed with the new settings, add {shown_name('retry_failed')}. "
        people = "kept" if self.existing == "skip" else f"treated as {shown_name('existing')} {self.existing} says"
        done = f"{self.records} inputs already have results"
        if not self.records and self.answers:
            done = f"the job already has {self.answers} answers"
        return (
            f"{done} with other settings ({'; '.join(changes)}), so nothing was changed. {retry}To caption all inputs "
            f"again with the new settings, add {shown_name('restart')}: captions that people wrote are {people}, and "
            f"those of the earlier run are replaced. To keep the earlier results too, choose another "
            f"{shown_name('out')} or {shown_name('state')}. To resume the earlier run, repeat its settings (they are "
            f"in {self.directory})"
        )


def same_results(before: Mapping[str, Any], now: Mapping[str, Any], retries_failed: bool = False) -> bool:
    """Return whether a job that has records with some settings can be resumed with others.

    Args:
        before: the settings of the records.
        now: the others.
        retries_failed: whether only inputs that failed are captioned.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.job_description import same_results
        >>> same_results({"sinks": {}}, {"sinks": {"template": "sks, {caption}"}})
        True
    """
    return all(
        name.startswith(_OF_OUTPUTS) or (retries_failed and _OF_RETRIES.match(name))
        for name, _, _ in _differences(before, now)
    )


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[SettingChange, ...]:
    """Return the settings that differ between two descriptions, each argument once.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.job_description import changed_settings
        >>> changed_settings({"captions": {"beginning": ""}}, {"captions": {"beginning": "A photo of"}})
        (SettingChange(argument='begin_with', before='not set', now="'A photo of'", is_of_retries=False),)
    """
    changes: dict[str, SettingChange] = {}
    for name, old, new in _differences(before, now):
        text, rest = _split_text(name)
        argument = _ARGUMENTS.get(rest, rest.rpartition(".")[2])
        if argument is not None and text:
            argument = f"{text}.{argument}"
        # Existing captions are looked for under `out`.
        if name.startswith(_OF_OUTPUTS):
            continue
        if argument is not None and not (argument == "caption_root" and "out" in changes):
            changes.setdefault(
                argument, SettingChange(argument, _as_text(old), _as_text(new), _OF_RETRIES.match(name) is not None)
            )
    return tuple(changes.values())


def with_model_files(description: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Return a description that states what the model's files contain, by part, and nothing if `files` is empty.

    Example:
        >>> from mindone.pipelines.image_to_text.dataset.state.job_description import with_model_files
        >>> with_model_files({"model": {"model": "m"}}, {"model": "files with the digest ab"})
        {'model': {'model': 'm', 'model_files': {'model': 'files with the digest ab'}}}
    """
    model = {name: value for name, value in description["model"].items() if name != _MODEL_FILES}
    return {**description, "model": {**model, **({_MODEL_FILES: dict(files)} if files else {})}}


def model_files(description: Mapping[str, Any]) -> dict[str, str]:
    """Return what a description states about the content of the model's files, by part."""
    model = description.get("model")
    stated = model.get(_MODEL_FILES) if isinstance(model, Mapping) else None
    return dict(stated) if isinstance(stated, Mapping) else {}


def _split_text(name: str) -> tuple[str, str]:
    """Return the text that a setting is of, as "texts.short", and the setting's name in it; "" if it is the job's."""
    parts = name.split(".", 2)
    return (f"texts.{parts[1]}", parts[2]) if parts[0] == "texts" and len(parts) == 3 else ("", name)


def _differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Return dotted name, old value and new value of everything that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found = []
        is_known = name == f"model.{_MODEL_FILES}"
        for key in sorted({*before, *now}):
            if (is_known or (name == "model" and key == _MODEL_FILES)) and not (key in before and key in now):
                continue
            found += _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if before == now else [(name, before, now)]


def _as_text(value: Any) -> str:
    if value is None or value == "" or value == []:
        return "not set"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        text = ", ".join(map(_as_text, value))
        return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}..."
    if isinstance(value, Mapping) and "text" not in value:
        return ", ".join(value)
    if isinstance(value, Mapping):  # a prompt
        return f"the style {value['style']!r}" if value.get("style") else repr(value.get("text"))
    return repr(value) if isinstance(value, str) else str(value)

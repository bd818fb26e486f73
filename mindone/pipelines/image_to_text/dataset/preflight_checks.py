"""Everything about a job that can be checked before it starts. Nothing is written and no weights are downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from mindone.models.share4v.hub import is_checkpoint_name, resolve
from mindone.models.share4v.hub.cache import cache_root
from mindone.models.share4v.load_options import LoadOptions
from mindone.models.share4v.processing.chat_templates import get_template

from .executors.base import executor_class
from .executors.replicas import check_count, replica_count
from .prompts.caption_template import CAPTION, WHERE
from .prompts.variables import BUILT_IN, check_known, variables_of
from .readers import list_inputs
from .rules.token_budget import TokenBudget, TokenBudgets
from .state.bounded_reading import read_json
from .state.paths import JOB, JOURNAL
from .writers import check_outputs, find_existing_output, output_path, writer_row

if TYPE_CHECKING:
    from .keywords import DatasetOptions
    from .options import CaptioningSettings, ModelChoice
    from .prompts.plan import PromptPlan

_CHECKED_INPUTS = 1000  # inputs whose columns are compared with the variables of prompts


def check_job(paths: Sequence[str], job: DatasetOptions, state: Path, engine: str) -> None:
    """Check the settings of a job and its outputs; `list_inputs` checks its inputs.

    Args:
        paths: the inputs.
        job: the settings, with the output formats.
        state: the state directory.
        engine: name of the executor.

    Raises:
        ValueError: a setting is wrong, a name is unknown, settings contradict each other, or an output cannot be
            written or would replace a file of somebody else.
        ImportError: a package that an output or the executor needs is not installed.
        FileNotFoundError, HubError, CheckpointError: the model was not found.
    """
    _check_generation(job, engine)
    _check_endpoints(job, engine)
    if engine == "replicas":
        check_count(replica_count(job.choice, job.options.executor), job.choice.numa)
    _check_near_equal(job)
    cache_root()  # has the key that signs the job's state; raises if this user has no home directory
    executor_class(engine)
    writers = job.options.writers
    check_outputs(job.options.formats, job.options.out, paths, writers.texts)
    fits = dict.fromkeys(one for fit in (writers.fit, *writers.text_fits.values()) for one in fit)
    budgets = [TokenBudget.parse(one) for one in fits]
    TokenBudgets(budgets, job.choice.local_files_only)  # downloads the tokenizers, which are small
    _check_writable(paths, job.options.out, state)
    if not (job.options.overwrite or job.options.adopt):  # an adopted job has its outputs at other paths
        _check_not_replaced(job.options.formats, job.options.out, state)


def check_start(paths: Sequence[str], job: DatasetOptions, engine: str) -> None:
    """Check what a job needs for its first record; a job that has records needs no second check.

    Raises:
        As `check_job`.
    """
    _check_model(job.choice, engine)
    _check_inputs_have(partial(_check_known, job), job, paths)


def check_template_variables(paths: Sequence[str], job: DatasetOptions) -> None:
    """Refuse a template with a variable that none of the first inputs has; a resumed job may have a new template.

    Raises:
        ValueError: the message names the known variables.
    """
    writers = job.options.writers
    known = {CAPTION, *writers.texts}
    templates = [one for one in (writers.template, *writers.text_templates.values()) if one is not None]
    if any(not variables_of(template, WHERE) <= {*known, *BUILT_IN} for template in templates):
        _check_inputs_have(lambda columns, later: check_known(templates, {*known, *columns}, later, WHERE), job, paths)


def needs_start(state: Path, restart: bool) -> bool:
    """Return whether the job has no record yet, or starts from the beginning.

    The journal is not opened: whether its directory can be trusted is checked when the job enters it.
    """
    try:
        status = (state / JOURNAL).lstat()
    except OSError:
        return True
    return restart or (S_ISREG(status.st_mode) and not status.st_size)


def _check_endpoints(job: DatasetOptions, engine: str) -> None:
    """Check what the engine 'http' needs, and that the settings need no other engine."""
    executor = job.options.executor
    if engine != "http":
        if executor.endpoints:
            raise ValueError(
                f"endpoint (--endpoint) needs engine 'http' (--engine http), but the engine is {engine!r}: set it, or "
                "leave endpoint out"
            )
        return
    from .executors.http_executor import base_address, read_key
    from .executors.http_requests import check_settings

    if not executor.endpoints:
        raise ValueError(
            "engine 'http' (--engine http) needs the address of a server: set endpoint (--endpoint) to a URL such as "
            "http://localhost:8000/v1"
        )
    for url in executor.endpoints:
        base_address(url)
    read_key(executor.api_key_env)
    for _, settings in _plans(job):
        check_settings(job.choice, settings, executor.request_fields)


def _check_near_equal(job: DatasetOptions) -> None:
    """Check that images that share captions are asked the same."""
    if job.options.near_equal != "once":
        return
    names = {text.name for text in job.settings.texts}  # earlier texts of the same image
    for plan, settings in _plans(job):
        found = sorted((plan.variables | variables_of(settings.begin_with, "begin_with")) - names)
        if found:
            raise ValueError(
                f"near_equal 'once' and the variable {{{found[0]}}} in a prompt or in begin_with cannot be combined: "
                "an image would get the answer to the question about another one; use near_equal 'note'"
            )


def _check_generation(job: DatasetOptions, engine: str) -> None:
    """Check the settings of `generate` for every style of the plan."""
    from mindone.models.share4v.generation.constraints import check_grammar, grammar_of
    from mindone.models.share4v.generation.grammar_trial import COMPILE_SECONDS, refusal

    from ..settings import check_settings  # imports MindSpore

    for schema in (settings.schema for _, settings in _plans(job) if settings.schema is not None):
        if job.options.existing in ("append", "prepend"):
            raise ValueError(
                f"schema (--schema) and existing (--existing) {job.options.existing} cannot be combined: JSON with "
                "another text is no JSON; use skip or overwrite"
            )
        if engine != "http":  # an endpoint has its own compiler, and accepts what that does
            text = grammar_of(schema, None)
            reason = refusal(text, COMPILE_SECONDS) if text is not None else None
            if reason is not None:  # the same limit as a server's; the compiler itself cannot be interrupted
                raise ValueError(f"schema (--schema): {reason}")
            check_grammar(schema)
    for plan, settings in _plans(job):
        for prompt in plan.prompts:
            generation, _ = settings.of_style(prompt.style)
            check_settings(None, generation)


def _plans(job: DatasetOptions) -> list[tuple[PromptPlan, CaptioningSettings]]:
    """Return the prompts of each text, with the settings of their answers."""
    return [(text.plan, text.settings) for text in job.settings.texts] or [(job.plan, job.settings)]


def _check_model(choice: ModelChoice, engine: str) -> None:
    if engine == "http":
        return
    if choice.conversation is not None:
        get_template(choice.conversation)
    if engine == "ray":  # the actors may have another device, and other files
        if not is_checkpoint_name(str(choice.model)) and not Path(choice.model).exists():
            resolve(choice.model, choice.cache_dir, local_files_only=True)  # raises with the known names
        return
    from mindone.models.share4v.backends import check_options
    from mindone.models.share4v.checkpoint import Checkpoint
    from mindone.models.share4v.configuration import NO_VISION

    options = LoadOptions.pick(asdict(choice))
    # Each replica has CPUs of its own, so `check_count` has checked where its weights can lie.
    check_options(replace(options, numa=None) if engine == "replicas" else options)
    checkpoint = Checkpoint.open(choice.model, options, weights=Path(choice.model).is_dir())
    if not checkpoint.config.has_vision:
        raise ValueError(NO_VISION)


def _check_inputs_have(
    check: Callable[[Collection[str], bool], None], job: DatasetOptions, paths: Sequence[str]
) -> None:
    """Refuse texts with a variable that none of the first inputs has.

    Args:
        check: given the known columns, and whether later inputs may have others; raises a ValueError if a variable is
            unknown.
        job, paths: the settings and the inputs.
    """
    columns: set[str] = set()
    if _passes(check, columns):
        return
    own: set[frozenset[str]] = set()
    count = 0
    for item in islice(list_inputs(paths, job.readers), _CHECKED_INPUTS):
        count += 1
        columns.update(item.columns)
        own.add(frozenset(item.columns))
        if _passes(check, columns):
            return
    # Rows with different columns (JSON lines) are not all listed yet: a later one may have the variable.
    check(columns, count == _CHECKED_INPUTS and len(own) > 1)


def _check_known(job: DatasetOptions, columns: Collection[str], allows_absent: bool = False) -> None:
    names = [text.name for text in job.settings.texts]
    for index, (plan, settings) in enumerate(_plans(job)):
        plan.check({*columns, *names[:index]}, allows_absent)
        check_known([settings.begin_with], columns, allows_absent, "begin_with")


def _passes(check: Callable[[Collection[str], bool], None], columns: Collection[str]) -> bool:
    try:
        check(columns, False)
    except ValueError:
        return False
    return True


def _check_writable(paths: Sequence[str], out: str | None, state: Path) -> None:
    if not os.path.lexists(state):  # whatever has its name is checked when the job enters it
        _check_writable_directory(state, "state")
    if out is not None:
        _check_writable_directory(Path(out) if Path(out).is_dir() else Path(out).absolute().parent, "out")
    else:
        for path in paths:
            if Path(path).is_dir():
                _check_writable_directory(Path(path), "out")


def _check_writable_directory(directory: Path, argument: str) -> None:
    """Check that files can be created in a directory, which need not exist yet."""
    existing = directory.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(
            f"{directory} cannot be created, since {existing} is not a directory: choose another {argument} "
            f"(--{argument})"
        )
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{existing} is not writable: choose another {argument} (--{argument})")


def _check_not_replaced(formats: Sequence[str], out: str | None, state: Path) -> None:
    """Refuse to replace files that the journal of this job does not describe."""
    if out is None:
        return  # captions beside images have their own rule, `existing`
    known = _described_outputs(state)
    for name in formats:
        row = writer_row(name)
        if (str(Path(out).absolute()), name) in known:
            continue
        found = find_existing_output(row, output_path(row, out))
        if found is not None:
            is_part = bool(row.pattern) and found.name != Path(out).name
            advice = "move it away" if is_part else "pass overwrite (--overwrite) to replace it"
            raise ValueError(
                f"{found} already exists, and this job did not write it: choose another out (--out), or {advice}"
            )


def _described_outputs(state: Path) -> set[tuple[Any, str]]:
    """Return the outputs of the job in a state directory, as (path, format); the check was passed for them.

    Raises:
        ValueError: the settings of the job cannot be read, so that what it wrote is unknown.
    """
    try:
        stored = read_json(state / JOB)
    except OSError:
        return set()
    if not isinstance(stored, dict):
        return set()
    return {(stored.get("out"), name) for name in stored.get("formats", ())}

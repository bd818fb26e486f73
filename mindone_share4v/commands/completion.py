"""`share4v completion`: scripts for bash, zsh and fish, generated from the parser and the tables of known names."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from shlex import quote

from ..printing import print_text
from .exit_status import DONE

_PATHS = ("DIR", "FILE", "PATH")  # placeholders of values that are paths


@dataclass(frozen=True)
class Option:
    """An option of a command, or a positional argument.

    Attributes:
        flags: such as ("-h", "--help"); empty for a positional argument.
        takes_value: whether a value follows.
        names: known values.
        is_path: whether the value is, or may be, a path.
        summary: for shells that show descriptions.
    """

    flags: tuple[str, ...]
    takes_value: bool
    names: tuple[str, ...]
    is_path: bool
    summary: str


@dataclass(frozen=True)
class Command:
    """A command with its options and positional arguments."""

    name: str
    summary: str
    options: tuple[Option, ...]
    positionals: tuple[Option, ...]


def run(arguments: Namespace) -> int:
    """Print the script and return the exit status."""
    print_text(SHELLS[arguments.shell](commands()), end="")
    return DONE


def commands() -> list[Command]:
    """Return what can be completed, from the parser."""
    from ..arguments import COMMANDS
    from ..cli import build_parser

    parsers = next(
        action.choices for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
    )
    known = known_names()
    found = []
    for name, parser in parsers.items():
        entries = [_option(action, known) for action in parser._actions]
        options = tuple(entry for entry in entries if entry.flags)
        positionals = tuple(entry for entry in entries if not entry.flags)
        found.append(Command(name, COMMANDS[name].HELP, options, positionals))
    return found


def known_names() -> dict[str, tuple[str, ...]]:
    """Return the names that an option or a positional argument accepts, from the tables that define them."""
    from mindone.models.share4v.hub import PRESETS
    from mindone.models.share4v.processing.chat_templates import TEMPLATES
    from mindone.models.share4v.quantization import PRECISIONS
    from mindone.pipelines.image_to_text.dataset.prompts.styles import STYLES
    from mindone.pipelines.image_to_text.dataset.writers import WRITERS

    models = tuple(name for name in PRESETS if not name.endswith("-vision-tower"))
    return {
        "--model": models,
        "SRC": models,
        "--remove": tuple(PRESETS),
        "--vision-tower": tuple(name for name in PRESETS if name.endswith("-vision-tower")),
        "--dtype": tuple(PRECISIONS),
        "--kv-cache-dtype": ("float32", "float16", "int8"),
        "--conversation": tuple(TEMPLATES),
        "--style": tuple(STYLES),
        "--format": tuple(WRITERS),
    }


def _option(action: argparse.Action, known: dict[str, tuple[str, ...]]) -> Option:
    flags, metavar = tuple(action.option_strings), str(action.metavar or "")
    takes_value = action.nargs != 0
    names = tuple(map(str, action.choices or known.get(flags[-1] if flags else metavar, ())))
    may_be_path = not action.choices and (not flags or metavar in _PATHS or flags[-1] in ("--model", "--vision-tower"))
    summary = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    return Option(flags, takes_value, names, takes_value and may_be_path, summary.split(";")[0].split(" (default")[0])


def bash(found: Sequence[Command]) -> str:
    """Return the script for bash; where it names nothing, bash completes paths."""
    lines = [
        "# bash completion for share4v, printed by `share4v completion bash`",
        "_share4v() {",
        '    local current="${COMP_WORDS[COMP_CWORD]}" previous="${COMP_WORDS[COMP_CWORD-1]}" command= word',
        "    COMPREPLY=()",
        "    # bash splits --flag=value into three words",
        '    if [[ $current == "=" ]]; then current=',
        '    elif [[ $previous == "=" ]]; then previous="${COMP_WORDS[COMP_CWORD-2]}"; fi',
        '    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        f"        case $word in {'|'.join(command.name for command in found)}) command=$word; break;; esac",
        "    done",
        "    case $command:$previous in",
    ]
    for command in found:
        for option in command.options:
            if option.takes_value:
                pattern = "|".join(f"{command.name}:{flag}" for flag in option.flags)
                lines.append(f"        {pattern}) {_compgen(option.names)} return;;")
    lines += ["    esac", "    case $command in"]
    for command in found:
        flags = [flag for option in command.options for flag in option.flags]
        names = [name for positional in command.positionals for name in positional.names]
        lines.append(f"        {command.name}) if [[ $current == -* ]]; then {_compgen(flags)}")
        lines.append(f"            else {_compgen(names)} fi;;")
    top = [*(command.name for command in found), "--help", "--version"]
    lines += [
        f"        *) {_compgen(top)}",
        "    esac",
        "}",
        "complete -o bashdefault -o default -F _share4v share4v",
    ]
    return "\n".join(lines) + "\n"


def _compgen(names: Sequence[str]) -> str:
    """Return the command of bash that completes some names."""
    return f'COMPREPLY=($(compgen -W {quote(" ".join(names))} -- "$current"));' if names else ":;"


def zsh(found: Sequence[Command]) -> str:
    """Return the script for zsh, to be named _share4v in a directory of $fpath."""
    lines = [
        "#compdef share4v",
        "# zsh completion for share4v, printed by `share4v completion zsh`",
        "_share4v() {",
        "    local -a commands",
        "    commands=(",
        *(f"        {quote(f'{command.name}:{_plain(command.summary)}')}" for command in found),
        "    )",
        "    if (( CURRENT == 2 )); then",
        "        _describe command commands",
        "        _arguments '--help[show help]' '--version[show the version]'",
        "        return",
        "    fi",
        "    local command=$words[2]",
        "    shift words; (( CURRENT-- ))",
        "    case $command in",
    ]
    for command in found:
        lines.append(f"        {command.name}) _arguments \\")
        specifications = [*_zsh_options(command.options), *_zsh_positionals(command.positionals)]
        lines += [f"            {quote(one)} \\" for one in specifications[:-1]]
        lines.append(f"            {quote(specifications[-1])};;")
    # A file that is sourced defines the function; a file in $fpath is the function.
    lines += [
        "    esac",
        "}",
        'if [[ "$funcstack[1]" == _share4v ]]; then _share4v "$@"; else compdef _share4v share4v; fi',
    ]
    return "\n".join(lines) + "\n"


def _zsh_options(options: Sequence[Option]) -> Iterator[str]:
    for option in options:
        for flag in option.flags:
            summary = _plain(option.summary).replace("[", "(").replace("]", ")")
            value = f":value:{_zsh_action(option)}" if option.takes_value else ""
            yield f"*{flag}[{summary}]{value}"


def _zsh_positionals(positionals: Sequence[Option]) -> Iterator[str]:
    for positional in positionals:
        yield f"*:value:{_zsh_action(positional)}"


def _zsh_action(option: Option) -> str:
    names = " ".join(option.names)
    if option.names and option.is_path:
        return f"{{compadd {names}; _files}}"
    if option.names:
        return f"({names})"
    return "_files" if option.is_path else ""


def fish(found: Sequence[Command]) -> str:
    """Return the script for fish."""
    lines = [
        "# fish completion for share4v, printed by `share4v completion fish`",
        "complete -c share4v -n __fish_use_subcommand -f -l version -d 'show the version and exit'",
        "complete -c share4v -n __fish_use_subcommand -f -s h -l help -d 'show help and exit'",
    ]
    for command in found:
        lines.append(
            f"complete -c share4v -n __fish_use_subcommand -f -a {command.name} -d {quote(_plain(command.summary))}"
        )
    for command in found:
        start = f"complete -c share4v -n {quote(f'__fish_seen_subcommand_from {command.name}')}"
        for positional in command.positionals:
            if positional.names:
                files = "" if positional.is_path else "-f "
                lines.append(f"{start} {files}-a {quote(' '.join(positional.names))}")
        for option in command.options:
            flags = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
            values = ""
            if option.takes_value:
                values = " -r" if option.is_path else " -x"
                values += f" -a {quote(' '.join(option.names))}" if option.names else ""
            lines.append(f"{start} {flags}{values} -d {quote(_plain(option.summary))}")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Return a description without the characters that separate parts of a specification."""
    return " ".join(text.replace(":", " -").replace("\\", "/").split())


SHELLS: dict[str, Callable[[Sequence[Command]], str]] = {"bash": bash, "zsh": zsh, "fish": fish}

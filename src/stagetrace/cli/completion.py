"""`stagetrace completion`: a script with which a shell completes commands and options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from stagetrace.cli.registry import ANSWERED, VERBS

DESCRIPTION: Final = """Print a script with which the shell completes commands, options and their fixed values.

bash: eval "$(stagetrace completion bash)" in ~/.bashrc
zsh:  eval "$(stagetrace completion zsh)" in ~/.zshrc, behind compinit
fish: stagetrace completion fish > ~/.config/fish/completions/stagetrace.fish"""
EXAMPLE: Final = 'eval "$(stagetrace completion bash)"'

_OF_TWO_WORDS: Final = "commands of two words"


class Option(NamedTuple):
    """An option or, where it has no flags, an argument of one verb."""

    verb: str
    flags: tuple[str, ...]
    values: tuple[str, ...]
    takes_value: bool
    help: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the argument."""
    parser.add_argument("shell", metavar="SHELL", choices=sorted(_SHELLS), help="bash, fish or zsh")


def run(args: argparse.Namespace) -> int:
    """Print the script and return the exit code."""
    sys.stdout.write(_SHELLS[args.shell]([option for verb in VERBS for option in _options(verb)]))
    return ANSWERED


def _options(verb: str) -> Iterator[Option]:
    from stagetrace.cli.main import parser_for

    commands = next(one for one in parser_for(verb)._actions if isinstance(one, argparse._SubParsersAction))  # noqa: SLF001 -- argparse has no public way
    for action in commands.choices[verb]._actions:  # noqa: SLF001
        values = tuple(str(choice) for choice in action.choices or ())
        text = "show this help" if "--help" in action.option_strings else (action.help or "") % vars(action)
        yield Option(verb, tuple(action.option_strings), values, action.nargs != 0, text)


def _bash(options: list[Option]) -> str:
    firsts = list(dict.fromkeys(verb.partition(" ")[0] for verb in VERBS))
    seconds = {first: [verb.partition(" ")[2] for verb in VERBS if verb.startswith(f"{first} ")] for first in firsts}
    after = [f"{first}) words='{' '.join(found)}' ;;" for first, found in seconds.items() if found]
    two = "|".join(first for first, found in seconds.items() if found) or "''"
    flags = [f"'{verb}') words='{' '.join(_words(options, verb))}' ;;" for verb in VERBS]
    values = [
        f"'{option.verb}:{flag}') words='{' '.join(option.values)}' ;;"
        for option in options
        for flag in option.flags
        if option.takes_value and option.values
    ]
    return f"""_stagetrace() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}} words=
    case "$verb" in {two}) [ "$COMP_CWORD" -gt 2 ] && verb="$verb ${{COMP_WORDS[2]}}" ;; esac
    if [ "$COMP_CWORD" -eq 1 ]; then
        words='{" ".join(firsts)} --help --version'
    else
        case "$verb:$before" in
        {chr(10).join(values).replace(chr(10), chr(10) + "        ")}
        *) case "$verb" in
            {chr(10).join([*after, *flags]).replace(chr(10), chr(10) + "            ")}
            esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _stagetrace stagetrace
"""


def _zsh(options: list[Option]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(options)


def _fish(options: list[Option]) -> str:
    lines = []
    for verb, command in VERBS.items():
        first, _, second = verb.partition(" ")
        when = f"'__fish_seen_subcommand_from {first}'" if second else "__fish_use_subcommand"
        lines.append(f"complete -c stagetrace -n {when} -f -a {second or first} -d {_quoted(command.summary)}")
    lines += [
        f"complete -c stagetrace -n __fish_use_subcommand -f -a {first} -d {_quoted(_OF_TWO_WORDS)}"
        for first in sorted({verb.partition(" ")[0] for verb in VERBS if " " in verb})
    ]
    for option in options:
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in option.verb.split())
        when = f"complete -c stagetrace -n '{seen}'"
        if not option.flags:
            lines += [f"{when} -a '{' '.join(option.values)}'"] if option.values else []
            continue
        names = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags)
        value = f" -x -a '{' '.join(option.values)}'" if option.values else " -r" if option.takes_value else ""
        lines.append(f"{when} {names}{value} -d {_quoted(option.help.partition(';')[0])}")
    return "\n".join([*lines, ""])


def _words(options: list[Option], verb: str) -> Iterator[str]:
    for option in options:
        if option.verb == verb:
            yield from option.flags or option.values


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ") + "'"


_SHELLS: Final[dict[str, Callable[[list[Option]], str]]] = {"bash": _bash, "fish": _fish, "zsh": _zsh}

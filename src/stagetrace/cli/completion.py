"""`stagetrace completion`: a script with which a shell completes commands, options, and names that a store holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Final

from stagetrace.cli.arguments import STORE, store_url
from stagetrace.cli.registry import ANSWERED, VERBS, Option, load
from stagetrace.store import open_store
from stagetrace.store.base import Selection

DESCRIPTION: Final = """Print a script with which the shell completes commands, options and their fixed values; bash and
zsh also services, routes and objectives of the store, which are asked for in the background.

bash: eval "$(stagetrace completion bash)" in ~/.bashrc
zsh:  eval "$(stagetrace completion zsh)" in ~/.zshrc, behind compinit
fish: stagetrace completion fish > ~/.config/fish/completions/stagetrace.fish"""
EXAMPLE: Final = 'eval "$(stagetrace completion bash)"'

_OF_TWO_WORDS: Final = "commands of two words"
_NAMES: Final = "names"
_MOST: Final = 200
_FOREVER_NS: Final = 2**63 - 1
_HELP: Final = Option("-h --help", "show this help")


def run(args: argparse.Namespace) -> int:
    """Print the script, or the names that a store holds, and return the exit code."""
    if args.shell == _NAMES:
        sys.stdout.writelines(f"{flag}\t{name}\n" for flag, name in _stored(args) if name.isprintable())
        return ANSWERED
    sys.stdout.write(_SHELLS[args.shell]({verb: (_HELP, *load(verb).OPTIONS) for verb in VERBS}))
    return ANSWERED


def _stored(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the names that a store holds, each behind the option that takes it."""
    with open_store(store_url(args)) as reader:
        yield from (("--service", name) for name in reader.services())
        with reader.relations(Selection(0, _FOREVER_NS)) as relations:
            rows = relations.reduce("counts", ("path", "objective"))
    for flag, key in (("--route", "path"), ("--judged-by", "objective")):
        yield from ((flag, name) for name in sorted({str(row[key]) for row in rows if row[key] is not None})[:_MOST])


def _bash(options: dict[str, tuple[Option, ...]]) -> str:
    firsts = list(dict.fromkeys(verb.partition(" ")[0] for verb in VERBS))
    seconds = {first: [verb.partition(" ")[2] for verb in VERBS if verb.startswith(f"{first} ")] for first in firsts}
    after = [f"{first}) words='{' '.join(found)}' ;;" for first, found in seconds.items() if found]
    two = "|".join(first for first, found in seconds.items() if found) or "''"
    words = {verb: [word for one in options[verb] for word in one.flags or one.choices or ()] for verb in VERBS}
    flags = [f"'{verb}') words='{' '.join(known)}' ;;" for verb, known in words.items()]
    values = [
        f"'{verb}:{flag}') words='{' '.join(one.choices)}' ;;"
        for verb, listed in options.items()
        for one in listed
        for flag in one.flags
        if one.choices
    ]
    return f"""_stagetrace_names() {{
    local folder="${{XDG_CACHE_HOME:-$HOME/.cache}}/stagetrace" store= file
    [[ $COMP_LINE =~ --store[=\\ ]+([^\\ ]+) ]] && store=${{BASH_REMATCH[1]}}
    file="$folder/names-$(printf %s "$store@$PWD" | cksum | cut -d' ' -f1)"
    if [ -z "$(find "$file" -mmin -1 2>/dev/null)" ]; then
        mkdir -p "$folder"
        {{
            stagetrace completion names ${{store:+--store "$store"}} >"$file.$$" && mv "$file.$$" "$file"
            rm -f "$file.$$"
        }} >/dev/null 2>&1 &
        disown
        for _ in 1 2 3; do [ -e "$file" ] || sleep 0.1; done
    fi
    [ -e "$file" ] && sed -n "s|^$1\t||p" "$file"
}}
_stagetrace() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} verb=${{COMP_WORDS[1]}} words= name
    COMPREPLY=()
    case "$before" in --service|--route|--judged-by)  # not by `compgen -W`, which would run what names hold
        while IFS= read -r name; do
            [[ $name == "$word"* ]] && COMPREPLY+=("$(printf %q "$name")")
        done < <(_stagetrace_names "$before")
        return ;;
    esac
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


def _zsh(options: dict[str, tuple[Option, ...]]) -> str:
    return "autoload -U +X bashcompinit && bashcompinit\n" + _bash(options)


def _fish(options: dict[str, tuple[Option, ...]]) -> str:
    lines = []
    for verb, summary in VERBS.items():
        first, _, second = verb.partition(" ")
        when = f"'__fish_seen_subcommand_from {first}'" if second else "__fish_use_subcommand"
        lines.append(f"complete -c stagetrace -n {when} -f -a {second or first} -d {_quoted(summary)}")
    lines += [
        f"complete -c stagetrace -n __fish_use_subcommand -f -a {first} -d {_quoted(_OF_TWO_WORDS)}"
        for first in sorted({verb.partition(" ")[0] for verb in VERBS if " " in verb})
    ]
    for verb, listed in options.items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in verb.split())
        when = f"complete -c stagetrace -n '{seen}'"
        for one in listed:
            choices = f" -a '{' '.join(one.choices)}'" if one.choices else ""
            if one.flags:
                names = " ".join(f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in one.flags)
                value = f" -x{choices}" if choices else " -r" if one.takes_value else ""
                lines.append(f"{when} {names}{value} -d {_quoted(one.about.partition(';')[0])}")
            elif choices:
                lines.append(f"{when}{choices}")
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", " ") + "'"


_SHELLS: Final[dict[str, Callable[[dict[str, tuple[Option, ...]]], str]]] = {"bash": _bash, "fish": _fish, "zsh": _zsh}
OPTIONS: Final = (
    Option("SHELL", f"bash, fish or zsh; {_NAMES}: what the script asks for", choices=[*sorted(_SHELLS), _NAMES]),
    STORE,
)

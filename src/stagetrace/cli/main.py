"""The command `stagetrace`: finds the verb, runs it, turns errors into exit codes."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from textwrap import wrap
from typing import Any, Final, NoReturn

from stagetrace import __version__, settings
from stagetrace.cli.console import INTERRUPTED, note_interrupts, printable_streams, unescaped
from stagetrace.cli.registry import ANSWERED, GROUPS, MORE, NO_ANSWER, VERBS, add_options, load
from stagetrace.errors import StagetraceError
from stagetrace.system import setting_problems
from stagetrace.text import TRACEBACK, bounded

# The exit code that shells report for a process that a signal ended.
_PIPE_CLOSED: Final = 141
# These stop other processes and servers first, each in bounded time of its own.
_AT_LEISURE: Final = ("bench", "demo", "page", "up")
_BEFORE: Final = ("-h", "--help", "--version")  # what may stand before the verb
_WRONG_CHOICE: Final = re.compile(r"argument (\S+): invalid choice: '(.*?)'")  # as argparse words it
_WIDTH: Final = 100
_SILENT: Final = ("completion", "doctor")

_EPILOG: Final = """exit codes:
  0  answered
  1  the answer is bad (breaches --fail: there is a breach; doctor: something fails)
  2  wrong usage, or no answer

example:
  stagetrace why --store jaeger://localhost:16685 --since 1h"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors have the form of all other errors of the command."""

    def error(self, message: str) -> NoReturn:
        """Print the error, the likely meaning and the command for help, then exit."""
        wrong = _WRONG_CHOICE.match(message)
        if wrong is not None:
            named = (
                ("/".join(one.option_strings) or str(one.metavar or one.dest), one.choices) for one in self._actions
            )
            message += _meant(wrong[2], (str(one) for name, known in named if name == wrong[1] for one in known or ()))
        message += f"\ntry: {self.prog} --help"
        self.exit(NO_ANSWER, f"stagetrace: {bounded(message)}\n")

    def print_help(self, file: Any = None) -> None:
        """Print the help, in colours where argparse has them."""
        super().print_help(file or unescaped(sys.stdout))

    def unknown(self, arguments: Sequence[str]) -> NoReturn:
        """Report unknown arguments, then exit."""
        flags = [flag for action in self._actions for flag in action.option_strings]
        given = next((one.partition("=")[0] for one in arguments if one.startswith("-")), "")
        self.error(f"unrecognized arguments: {' '.join(arguments)}{_meant(given, flags)}")


def _meant(given: str, known: Iterable[str]) -> str:
    """Return a line with the known word nearest to a misspelt one, one of the same letters first, or nothing."""
    known = list(known)
    begun = [one for one in known if len(given) > len("--") and one.startswith(given)]
    found = begun or sorted(get_close_matches(given, known), key=lambda one: sorted(one) != sorted(given))
    return f"\ndid you mean {found[0]}?" if given and found else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    with printable_streams(), note_interrupts(hurry=not given or given[0] not in _AT_LEISURE) as interrupts:
        try:
            code = _run(given)
            sys.stdout.flush()
        except BrokenPipeError:
            # `| head` has read enough.
            _discard_output()
            return _PIPE_CLOSED
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:  # noqa: BLE001 -- an exit code for each end
            if interrupts:  # some libraries raise errors of their own for it
                return INTERRUPTED
            text = _message(error)
            if text is None:  # never exit code 1, which means that the answer is bad
                sys.stderr.write(bounded(traceback.format_exc(), *TRACEBACK))
                text = "this is a fault of stagetrace itself, and there is no answer\nreport it with the lines above"
            sys.stderr.write(f"stagetrace: {bounded(text)}\n")
            return NO_ANSWER
    return code


def _message(error: Exception) -> str | None:
    """Return the message for an error, or None where it is a fault of stagetrace."""
    if isinstance(error, StagetraceError):
        return str(error)
    if isinstance(error, OSError) and (why := _why_unwritable()):
        return f"cannot write the answer: {why}\ngive stdout a place that takes it"
    if isinstance(error, getattr(sys.modules.get("duckdb"), "Error", ())):
        what = str(error).splitlines()[0]
        if isinstance(error, sys.modules["duckdb"].OutOfMemoryException):
            return f"the answer needs more memory than there is: {what}\nask for less, as by --since or --limit"
        return f"cannot read what is stored: {what}\nput the file back from a copy, or name another store"
    return None


def _why_unwritable() -> str | None:
    """Return why stdout takes nothing (its disk is full), or None where it takes an empty line."""
    try:
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError as error:
        _discard_output()
        return error.strerror
    return None


def _discard_output() -> None:
    """Discard buffered output, or the interpreter complains at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser_for(verb: str | None) -> argparse.ArgumentParser:
    """Return the parser, with the options of `verb` alone: the other verbs' modules stay unimported."""
    parser = _Parser(
        prog="stagetrace",
        usage="stagetrace [-h] [--version] COMMAND ...",
        description="Which stage of which ML request missed its latency objective, and why.",
        epilog=_listed() + _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"stagetrace {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, help=argparse.SUPPRESS)
    for name in VERBS:
        if name != verb:
            commands.add_parser(name)
            continue
        module = load(name)
        command = commands.add_parser(
            name,
            prog=f"stagetrace {name}",
            description=module.DESCRIPTION,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add_options(command, module.OPTIONS)
    return parser


def _listed() -> str:
    """Return the commands by group, a line each; the rest in one."""
    lines = []
    for group, verbs in GROUPS.items():
        if group == MORE:
            lines += wrap(f"{group}: {', '.join(verbs)}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        else:
            lines += [f"{group}:", *(f"  {verb:<12} {summary}" for verb, summary in verbs.items())]
    return "\n".join([*lines, "", ""])


def _listing(given: Sequence[str]) -> int | None:
    """List commands where none is given, or the first word of some; return the exit code, or None of a command."""
    if not given:
        parser_for(None).print_help()
        return ANSWERED
    if given[0] in VERBS or given[0].startswith("-"):
        return None
    if any(verb.startswith(f"{given[0]} ") for verb in VERBS):
        return _run_group(given[0], given[1:])
    return _no_command(given[0], VERBS)


def _run_group(first: str, rest: Sequence[str]) -> int:
    """List the commands that begin with a word; without one more, or with --help, that is an answer."""
    verbs = {verb: summary for verb, summary in VERBS.items() if verb.startswith(f"{first} ")}
    if rest and rest[0] not in _BEFORE:
        return _no_command(f"{first} {rest[0]}", verbs, f"stagetrace {first} --help")
    width = max(map(len, verbs))
    lines = [f"usage: stagetrace {first} COMMAND ...", "", *(f"  {one:<{width}}  {verbs[one]}" for one in verbs)]
    sys.stdout.write("\n".join([*lines, "", f"help of one: stagetrace {next(iter(verbs))} --help", ""]))
    return ANSWERED


def _no_command(given: str, verbs: Iterable[str], listing: str = "stagetrace --help") -> int:
    sys.stderr.write(f"stagetrace: there is no command {bounded(given)}{_meant(given, verbs)}\ntry: {listing}\n")
    return NO_ANSWER


def parser_of(parser: argparse.ArgumentParser, verb: str) -> _Parser:
    """Return the parser of a verb out of that of all commands."""
    commands = next(one for one in parser._actions if isinstance(one, argparse._SubParsersAction))  # noqa: SLF001 -- argparse has no public way
    found: _Parser = commands.choices[verb]
    return found


def _run(given: list[str]) -> int:
    """Parse and run; argparse's own ways out (--help, --version, an error) become exit codes."""
    if " ".join(given[:2]) in VERBS:  # a verb of two words: `sla check`
        given = [" ".join(given[:2]), *given[2:]]
    listed = _listing(given)
    if listed is not None:
        return listed
    # Only --help and --version may stand before the verb, and both end there.
    verb = given[0] if given and given[0] in VERBS else None
    later = next((one for one in given if one in VERBS), None)
    try:
        parser = parser_for(verb)
        if verb is None and later is not None and given[0] not in _BEFORE:
            parser.error(f"options stand behind the command\nwrite: stagetrace {later} {given[0]} ...")
        args, rest = parser.parse_known_args(given)
        if rest:
            parser_of(parser, args.verb).unknown(rest)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else NO_ANSWER
    misspelt = [one for one in setting_problems.misspelt(settings.environment()) if one[1] is not None]
    if misspelt and args.verb not in _SILENT:  # they would change the answer unnoticed; `doctor` lists all of them
        sys.stderr.write(f"stagetrace: {setting_problems.misspelt_text(misspelt)}\n")
    if "store" in args:
        # gRPC would write lines of its own to stderr, above our error for the same fault.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    module: Any = load(args.verb)
    if hasattr(module, "run"):
        return int(module.run(args))
    from stagetrace.cli.ask import ask

    return ask(args, module.answer, since=getattr(module, "SINCE", None))


if __name__ == "__main__":
    sys.exit(main())

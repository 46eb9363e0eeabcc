"""The command `stagetrace`: finds the verb, runs it, turns errors into exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from io import TextIOWrapper
from typing import TYPE_CHECKING, Final, NoReturn

from stagetrace import __version__
from stagetrace.cli.base import NO_ANSWER
from stagetrace.cli.registry import VERBS, load
from stagetrace.errors import StagetraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

# As a shell reports a process that these signals ended.
_INTERRUPTED: Final = 130
_PIPE_CLOSED: Final = 141

_EPILOG: Final = """exit codes:
  0  answered
  1  the answer is bad (breaches --fail: there is a breach; doctor: something fails)
  2  wrong usage, or no answer

example:
  stagetrace breaches --store jaeger://localhost:16685 --since 1h"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors look like all others of the command."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where the help is, then leave."""
        self.exit(NO_ANSWER, f"stagetrace: {message}\ntry: {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a name that the terminal cannot show must not end the command
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # `| head` has read enough. What is still buffered goes nowhere, or the interpreter complains at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except StagetraceError as error:
        sys.stderr.write(f"stagetrace: {error}\n")
        return NO_ANSWER
    return code


def parser_for(verb: str | None) -> argparse.ArgumentParser:
    """Return the parser, with the options of `verb` alone: the other verbs' modules stay unimported."""
    parser = _Parser(
        prog="stagetrace",
        description="Which stage of which ML request broke the latency promise, and why.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"stagetrace {__version__}")
    commands = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True, title="commands")
    for name, summary in VERBS.items():
        if name != verb:
            commands.add_parser(name, help=summary)
            continue
        module = load(name)
        command = commands.add_parser(
            name,
            help=summary,
            description=module.DESCRIPTION,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.configure(command)
    return parser


def _run(given: list[str]) -> int:
    """Parse and run; argparse's own ways out (--help, --version, an error) become exit codes."""
    # Only --help and --version may stand before the verb, and both end there.
    verb = given[0] if given and given[0] in VERBS else None
    try:
        args = parser_for(verb).parse_args(given)
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else NO_ANSWER
    if "store" in args:
        # gRPC would write lines of its own to stderr, above the error that says the same for people.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return load(args.verb).run(args)


if __name__ == "__main__":
    sys.exit(main())

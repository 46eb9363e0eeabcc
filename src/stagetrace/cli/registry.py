"""The contract of a verb: one module of this folder, which declares it, and one line in `VERBS`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Collection, Iterable
from importlib import import_module
from keyword import iskeyword
from typing import Any, Final, NamedTuple, Protocol, cast

from stagetrace.errors import StagetraceError

# Exit codes of every verb.
ANSWERED: Final = 0
BAD: Final = 1  # answered, and the answer is bad: a breach, with --fail
NO_ANSWER: Final = 2  # wrong usage, or no answer


class UsageError(StagetraceError):
    """The options of a command are wrong; the message names the remedy."""


class Option(NamedTuple):
    """An option of a verb or, where its name begins with no hyphen, an argument."""

    names: str  # `--by KEY`; a switch has no word behind it: `-f --follow`
    about: str  # for the help, with its default
    read: Callable[[str], Any] = str  # raises ValueError or ArgumentTypeError with what can be written instead
    default: Any = None
    repeats: bool = False  # its value is a list
    choices: Collection[str] | None = None
    required: bool = False
    many: str | None = None  # of an argument: `?`, `+` or the rest, as argparse has it
    alone: str = ""  # of all options with the same word here, one can be given
    key: str | None = None  # of its value in the arguments, where it is not its name

    @property
    def flags(self) -> list[str]:
        """Return its names with hyphens."""
        return [word for word in self.names.split() if word.startswith("-") and word != "--"]

    @property
    def metavar(self) -> str | None:
        """Return how its value is named; None of a switch, or where its choices stand for it."""
        return self.names.removeprefix(" ".join(self.flags)).strip() or None

    @property
    def takes_value(self) -> bool:
        """Return whether it is more than a switch."""
        return self.metavar is not None or self.choices is not None

    def add_to(self, parser: argparse._ActionsContainer) -> None:
        """Add it to a parser."""
        more: dict[str, Any] = {"help": self.about.replace("%", "%%")}
        if self.takes_value:
            more |= {"metavar": self.metavar, "choices": self.choices, "type": _readable(self.read)}
            more |= {"action": "append", "default": []} if self.repeats else {"default": self.default}
        else:
            more["action"] = "store_true"
        if not self.flags:
            parser.add_argument(self.key or self.names.lower(), nargs=self.many, **more)
            return
        if self.key is not None:
            more["dest"] = self.key
        parser.add_argument(*self.flags, required=self.required, **more)


def _readable(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a reader whose errors argparse shows as they are."""

    def value(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read if isinstance(read, type) else value


def add_options(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Add all options of a verb."""
    groups: dict[str, argparse._ActionsContainer] = {"": parser}
    for one in options:
        if one.alone not in groups:
            groups[one.alone] = parser.add_mutually_exclusive_group()
        one.add_to(groups[one.alone])


class Verb(Protocol):
    """A module that is one command. It is imported only when its command is given, so it may import freely."""

    DESCRIPTION: str
    """Description of the command, for its help: one to three sentences."""

    EXAMPLE: str
    """One command line, which ends the help."""

    OPTIONS: tuple[Option, ...]
    """Its options and arguments, in the order of the help; those that verbs share are in `arguments` and `ask`."""

    def run(self, args: argparse.Namespace) -> int:
        """Run it and return the exit code: data to stdout, messages to stderr. A StagetraceError means exit code 2.

        A verb that answers a question on a selection has `answer(reader, wanted, args) -> Answer` in place of this, and
        `SINCE` where its default of --since is not an hour.
        """
        ...


# All verbs by the heading under which the help lists them, each with its line there. The module of `sla check` is `sla_check`,
# that of `import` is `import_`, since the word is Python's.
MORE: Final = "More"  # which the help names in one line
GROUPS: Final = {
    "Start": {
        "up": "run the embedded back end: OTLP in, a local store, answers out",
        "demo": "run a service with real faults, and what the commands report of them",
        "doctor": "check the installation, the settings, the delivery of spans, and running services",
    },
    "Look": {
        "why": "tell what is wrong now; with a trace, why that one request was late",
        "breaches": "show the requests that missed their objective, in groups of those that are alike",
        "trace": "draw one trace: which stage took the time",
        "stages": "show how long each stage takes, by route and model",
        "page": "serve the page, which shows any store in a browser",
    },
    "Answers": {
        "slo": "show whether each objective is kept, and how long its error budget lasts",
        "report": "report on a period: objectives met, exclusions, incidents, credits",
        "bottleneck": "show where the time of requests goes, at the median and in the tail",
        "causes": "find what distinguishes breaches from good requests, and which service is to blame",
        "segments": "show how tenants, tiers, regions or input sizes fare, against the rest",
        "compare": "show whether a version of a model is slower than another, and how sure that is",
        "drift": "show which latencies have changed: steps and slopes over time, alarms",
        "capacity": "show how much load a service takes, how much is left, and when to scale",
        "cost": "divide what instances and tokens cost among requests",
        "bench": "put load on a service: what latency it keeps, and up to which rate",
        "what-if": "show how requests would fare with other workers, threads, batches, load or stages",
    },
    "Objectives": {
        "sla check": "check a policy: errors and warnings by line and column, and what it says",
        "sla explain": "show why a request has its verdict, and which one a policy gives it",
        "sla replay": "show what a policy would have said of stored requests",
        "sla suggest": "suggest objectives that observed traffic could keep",
        "sla rules": "print what follows from a policy: alerts for Prometheus, and others",
    },
    "Stored data": {
        "query": "query requests and spans in SQL",
        "export": "write spans to a file: Parquet, CSV, OTLP",
        "import": "store the spans of files in a local store",
        "mark": "name this moment, such as a deploy: drawn over time, and a candidate for since when",
        "prune": "delete old spans from a local store",
    },
    MORE: {
        "clickhouse init": "make a table of requests in ClickHouse, so that answers take a fraction of the time",
        "completion": "print a script with which a shell completes commands and options",
        "inject": "put the agent into the pods of Kubernetes manifests, or take it out",
        "mcp": "answer the questions of an agent or an editor, by the Model Context Protocol",
        "replay": "send a breach to a test instance again, alone and under the load that was around it",
        "requests": "list requests: the newest, the slowest",
        "run": "start a service with recording on, for installs that read no .pth file",
        "services": "list the services that have spans",
        "tail": "show the newest requests, and new ones as they arrive",
        "silence": "let no receiver of alerts hear of an objective for a time",
        "watch": "show objectives, routes and stages, refreshed",
    },
}
VERBS: Final = {verb: summary for listed in GROUPS.values() for verb, summary in listed.items()}

# The verbs that answer a question of one selection, in the order in which they are asked of a service.
ANSWERS: Final = ("slo", "report", "bottleneck", "causes", "segments", "compare", "drift", "capacity", "cost")


def load(name: str) -> Verb:
    """Return the module of a verb."""
    module = f"{name}_" if iskeyword(name) else re.sub(r"[ -]", "_", name)
    return cast("Verb", import_module(f"stagetrace.cli.{module}"))

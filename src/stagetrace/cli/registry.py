"""The contract of a verb: one module of this folder with these four names, and one line in `registry.VERBS`."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Final, NamedTuple, Protocol, cast

from stagetrace.errors import StagetraceError

# Exit codes of every verb.
ANSWERED: Final = 0
BAD: Final = 1  # answered, and the answer is bad: a breach, with --fail
NO_ANSWER: Final = 2  # wrong usage, or no answer


class UsageError(StagetraceError):
    """The options of a command are wrong; the message names the remedy."""


class Verb(Protocol):
    """A module that is one command. It is imported only when its command is given, so it may import freely."""

    DESCRIPTION: str
    """Description of the command, for its help: one to three sentences."""

    EXAMPLE: str
    """One command line, which ends the help."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add options and arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Run it and return the exit code: data to stdout, messages to stderr. A StagetraceError means exit code 2.

        A verb that answers a question on a selection has `answer(reader, wanted, args) -> Answer` in place of this, and
        `SINCE` where its default of --since is not an hour.
        """
        ...


# --- All verbs. A new one is a module `cli/NAME.py`, or `cli/NAME/command.py` (see `base.Verb`), and a line here.
#
# A verb may have two words: `sla check` is `cli/sla/check.py`.


class Command(NamedTuple):
    """A verb: its module in `stagetrace.cli`, imported on use, and its line in the list of commands."""

    module: str
    summary: str


VERBS: Final[dict[str, Command]] = {
    "bench": Command("bench.command", "put load on a service: what latency it keeps, and up to which rate"),
    "bottleneck": Command("bottleneck.command", "show where the time of requests goes, at the median and in the tail"),
    "breaches": Command("breaches", "list the requests that missed their latency objective"),
    "capacity": Command("capacity", "show how much load a service takes, how much is left, and when to scale"),
    "causes": Command("causes", "find what distinguishes breaches from good requests, and which service is to blame"),
    "compare": Command(
        "compare.command", "show whether a version of a model is slower than another, and how sure that is"
    ),
    "completion": Command("completion", "print a script with which a shell completes commands and options"),
    "cost": Command("cost", "divide what instances and tokens cost among requests"),
    "demo": Command("demo", "run a service with real faults, and what the commands report of them"),
    "doctor": Command(
        "doctor.command", "check the installation, the settings, the delivery of spans, and running services"
    ),
    "drift": Command("drift.command", "show which latencies have changed: steps and slopes over time, alarms"),
    "export": Command("export", "write spans to a file: Parquet, CSV, OTLP"),
    "import": Command("import_", "store the spans of files in a local store"),
    "page": Command("page", "serve the page, which shows any store in a browser"),
    "prune": Command("prune", "delete old spans from a local store"),
    "query": Command("query", "query requests and spans in SQL"),
    "report": Command("report", "report on a period: objectives met, exclusions, incidents, credits"),
    "requests": Command("requests", "list requests: the newest, the slowest"),
    "run": Command("run", "start a service with recording on, for installs that read no .pth file"),
    "segments": Command("segments", "show how tenants, tiers, regions or input sizes fare, against the rest"),
    "services": Command("services", "list the services that have spans"),
    "sla explain": Command("sla.explain", "show why a request has its verdict, and which one a policy gives it"),
    "sla replay": Command("sla.replay", "show what a policy would have said of stored requests"),
    "sla check": Command("sla.check", "check a policy: errors and warnings by line and column, and what it says"),
    "sla rules": Command("sla.rules", "print what follows from a policy: alerts for Prometheus, and others"),
    "sla suggest": Command("sla.suggest", "suggest objectives that observed traffic could keep"),
    "slo": Command("slo", "show whether each objective is kept, and how long its error budget lasts"),
    "stages": Command("stages", "show how long each stage takes, by route and model"),
    "tail": Command("tail", "show the newest requests, and new ones as they arrive"),
    "trace": Command("trace", "draw one trace: which stage took the time"),
    "up": Command("up", "run the embedded back end: OTLP in, a local store, answers out"),
    "watch": Command("watch", "show objectives, routes and stages, refreshed"),
}

# The verbs that answer a question of one selection, in the order in which they are asked of a service.
ANSWERS: Final = ("slo", "report", "bottleneck", "causes", "segments", "compare", "drift", "capacity", "cost")


def load(name: str) -> Verb:
    """Return the module of a verb."""
    return cast("Verb", import_module(f"stagetrace.cli.{VERBS[name].module}"))

"""All verbs. A new one is a module `cli/NAME.py`, or `cli/NAME/command.py` (see `base.Verb`), and a line here."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from keyword import iskeyword
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from stagetrace.cli.base import Verb

# Name -> what it does, in the list of commands.
VERBS: Final[dict[str, str]] = {
    "bench": "put load on a service: what latency it keeps, and up to which rate",
    "bottleneck": "show where the time of requests goes, at the median and in the tail",
    "breaches": "list the requests that missed their latency objective",
    "capacity": "tell how much a service takes, what is left, and when to scale",
    "causes": "find what distinguishes breaches from good requests, and which service is to blame",
    "compare": "say whether a version of a model is slower than another, and how sure that is",
    "completion": "print what makes a shell complete commands and options",
    "cost": "divide what instances and tokens cost among requests",
    "demo": "run a service with real faults, and see what is said of them",
    "doctor": "check the installation, the settings, the way of spans, and running services",
    "drift": "show which latencies have changed: steps and slopes over time, alarms",
    "export": "write spans to a file: Parquet, CSV, OTLP",
    "import": "take the spans of files into a local store",
    "prune": "delete old spans from a local store",
    "query": "ask in SQL over requests and spans",
    "report": "report on a period: what was met, what does not count, incidents, credits",
    "requests": "list requests: the newest, the slowest",
    "run": "start a service with recording on, for installs that read no .pth file",
    "segments": "show how tenants, tiers, regions or input sizes fare, against the rest",
    "services": "list the services that have spans",
    "slo": "say whether each objective is kept, and how long its error budget lasts",
    "stages": "show how long each stage takes, by route and model",
    "tail": "show the newest requests, and those that come",
    "trace": "draw one trace: which stage took the time",
    "up": "run the embedded back end: OTLP in, a local store, answers out",
    "watch": "show objectives, routes and stages, refreshed",
}


def load(name: str) -> Verb:
    """Return the module of a verb."""
    found = f"stagetrace.cli.{name}{'_' if iskeyword(name) else ''}"  # no module can be named like a word of Python's
    spec = find_spec(found)
    is_folder = spec is not None and spec.submodule_search_locations is not None
    return cast("Verb", import_module(f"{found}.command" if is_folder else found))

"""All verbs. A new one is a module `stagetrace.cli.NAME` (see `base.Verb`) and a line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from stagetrace.cli.base import Verb

# Name -> what it does, in the list of commands.
VERBS: Final[dict[str, str]] = {
    "breaches": "list the requests that broke their latency objective",
    "run": "start a service with recording on, for installs that read no .pth file",
    "trace": "draw one trace: which stage took the time",
    "up": "run the embedded back end: OTLP in, a local store, answers out",
}


def load(name: str) -> Verb:
    """Return the module of a verb."""
    return cast("Verb", import_module(f"stagetrace.cli.{name}"))

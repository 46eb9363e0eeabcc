"""The contract of a view: one module of `views/` with a `VIEW`, its template, and one line in `views.VIEWS`.

A view has a shell, which is there at once since it asks nothing, and parts: pieces of HTML that the shell loads, each
the answer to one question of the store. Parts are made in threads, shared by all who ask the same, and kept for a
while.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from stagetrace.backend.counters import Figure
    from stagetrace.output.answer import Answer
    from stagetrace.output.times import Zone
    from stagetrace.page.asked import Asked
    from stagetrace.rules.alert_state import Alert
    from stagetrace.store.base import Reader, Selection

# The answer of a verb: its name, a reader, the selection, options as on a command line, the zone of times. Raises
# StagetraceError.
Ask: TypeAlias = "Callable[[str, Reader, Selection, Sequence[str], Zone], Answer]"


class Option(NamedTuple):
    """An option of a verb, as its command line describes it."""

    flag: str  # --by
    metavar: str | None  # how its value is named; None: it takes none
    help: str
    repeats: bool = False


@dataclass(frozen=True)
class Site:
    """What all views share."""

    store: str  # what commands name with `--store`
    open_reader: Callable[[], Reader]
    ask: Ask
    about: Sequence[tuple[str, str]] = ()  # what runs here: name and address
    since: str = "1h"  # the start of the selection where a URL names none
    has_login: bool = False  # whether browsers log in, by the token
    options: Callable[[str], Sequence[Option]] = lambda _verb: ()  # of a verb
    limit_s: float = 60.0  # how long one part may ask the store
    figures: Callable[[], Sequence[Figure]] = lambda: ()  # what the back end counts
    send: Sequence[str] = ()  # the lines of a command with which a service sends its spans here
    commands: Sequence[str] = ()  # that ask it
    alerts: Callable[[], Sequence[Alert]] | None = None  # those of objectives, where they are evaluated here
    jaeger_ui: str = ""  # the address of a Jaeger UI, or a template of its URLs with `{trace_id}`; empty: there is none

    def jaeger(self, trace_id: str) -> str | None:
        """Return the URL of a trace in the Jaeger UI, if there is one."""
        if not self.jaeger_ui:
            return None
        template = (
            self.jaeger_ui if "{trace_id}" in self.jaeger_ui else f"{self.jaeger_ui.rstrip('/')}/trace/{{trace_id}}"
        )
        return template.replace("{trace_id}", trace_id)


@dataclass(frozen=True)
class Part:
    """What one part of a view shows: a template of `templates/` and its values."""

    template: str
    values: Mapping[str, Any]
    reason: str | None = None  # what is missing, if anything is


@dataclass(frozen=True)
class File:
    """A part that is no HTML, for a link: what it holds and what it is called where it is saved; None: it is shown."""

    body: bytes
    type: str
    name: str | None


Make: TypeAlias = "Callable[[Asked, Reader, Site], Part | File]"
# An endpoint of Starlette's.
Endpoint: TypeAlias = "Callable[[Request], Awaitable[Response]]"


@dataclass(frozen=True)
class View:
    """One view. Its shell is at `path`, which may have parameters (`{trace_id}`), each part at `path/NAME`."""

    name: str
    title: str
    path: str
    template: str
    parts: Mapping[str, Make] = field(default_factory=dict)
    # Values of the shell's template beside `asked`, `view` and `site`; it must not ask the store.
    shell: Callable[[Asked, Site], Mapping[str, Any]] = lambda _asked, _site: {}
    in_menu: bool = True
    # Endpoints beside the parts, each at `path/NAME`: what does not end, as a stream. The stack closes what they hold.
    routes: Callable[[Site, ExitStack], Mapping[str, Endpoint]] = lambda _site, _stack: {}
    # Its own parameters that stay when the selection changes. A field of `more_filter` is one: such a view then has an
    # empty block `kept`, which would hold them hidden.
    keeps: Sequence[str] = ()

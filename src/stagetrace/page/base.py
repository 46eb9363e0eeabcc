"""The contract of a view: one module of `views/` with a `VIEW`, its template, and one line in `views.VIEWS`.

A view has a shell, which is there at once since it asks nothing, and parts: pieces of HTML that the shell loads, each
the answer to one question of the store. Parts are made in threads, shared by all who ask the same, and kept for a
while.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlencode

from stagetrace.errors import StagetraceError
from stagetrace.output.units import UTC, Moment, Zone, moment, zone
from stagetrace.output.units import shown as written
from stagetrace.page.source import NO_SOURCE, Source
from stagetrace.store.base import Selection

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from stagetrace.backend.alerts.silences import Silence
    from stagetrace.backend.counters import Figure
    from stagetrace.output.answer import Answer
    from stagetrace.rules.alerts import Alert
    from stagetrace.store.base import Reader

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
    silences: Callable[[], Sequence[Silence]] = lambda: ()  # of these alerts
    silence: Callable[[str, str, float], object] | None = None  # an objective, of a service or all, for so many seconds
    source: Source = NO_SOURCE  # where a line of code is
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
    # Parts that may take long: they are made in threads apart, so that they hold no others.
    apart: Sequence[str] = ()
    # Parts that are shown as they last were, while they are made anew.
    as_they_were: Sequence[str] = ()


# --- What a URL of the page asks for: the selection, which every view shares, and what is of one view alone.
#
# The parameters are the options of the commands: since, until, service, route, model, judged-by, segment, cause, code,
# tz. Every other one belongs to a view. A link keeps the selection, so each URL can be sent to somebody else.

SHARED: Final = ("since", "until", "service", "route", "model", "judged-by", "segment", "cause", "code", "tz")
REPEATED: Final = ("segment", "cause", "code")  # each of which may be given several times
# Without an end there is none: clocks of traced machines run ahead of ours, and their newest spans count.
_AHEAD_NS: Final = 86_400 * 10**9
_PARAMETERS: Final = 100
_MOST: Final = 20  # values of one parameter
LONGEST: Final = 2000  # characters of a value


class BadRequest(StagetraceError):  # noqa: N818 -- HTTP's word
    """A URL asks for what there cannot be; the message names the remedy."""


@dataclass(frozen=True)
class Asked:
    """One request: its parameters, read once. `path` holds the parts of the path that vary, as `trace_id`."""

    params: Mapping[str, tuple[str, ...]]
    selection: Selection
    zone: Zone
    now_ns: int
    path: Mapping[str, str]

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]], path: Mapping[str, str], since: str) -> Asked:
        """Return what these parameters ask for; `since`: where they name no start. Raise BadRequest."""
        if len(pairs) > _PARAMETERS:
            raise BadRequest(
                f"the URL has {len(pairs)} parameters, and at most {_PARAMETERS} are taken\nshorten the URL"
            )
        params: dict[str, tuple[str, ...]] = {}
        for name, value in pairs:
            if value:  # an empty field of a form is not filled in
                params[name] = (*params.get(name, ()), value)
        _check(params)
        now_ns = time.time_ns()
        try:
            its_zone = zone(params["tz"][-1]) if "tz" in params else UTC
            first = moment((params.get("since") or (since,))[-1])
            last = moment(params["until"][-1]) if "until" in params else None
        except argparse.ArgumentTypeError as error:
            raise BadRequest(f"{error}\nchange `since`, `until` or `tz` in the URL") from None
        return cls(params, _selection(params, first, last, now_ns, its_zone), its_zone, now_ns, path)

    def one(self, name: str, default: str | None = None) -> str | None:
        """Return a parameter that is given once, or the last of several."""
        return (self.params.get(name) or (default,))[-1]

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Return a parameter that is a whole number. Raise BadRequest where it is none, or out of range."""
        text = self.one(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 20 and least <= int(text) <= most):  # noqa: PLR2004
            raise BadRequest(f"{name}={text[:40]!r} is not a whole number from {least:,} to {most:,}\nchange the URL")
        return int(text)

    @property
    def window_ns(self) -> tuple[int, int]:
        """Return from when to when a picture of the selection goes: to now where it has no end."""
        return self.selection.since_ns, min(self.selection.until_ns, max(self.now_ns, self.selection.since_ns + 1))

    def url(self, path: str, **changes: str | Sequence[str] | None) -> str:
        """Return a link with the same selection, but for `changes`; None takes a parameter away.

        A view's own parameters are kept only where `changes` has them.
        """
        kept: dict[str, Sequence[str]] = {name: self.params[name] for name in SHARED if name in self.params}
        for name, value in changes.items():
            kept[name] = () if value is None else (value,) if isinstance(value, str) else value
        query = urlencode(kept, doseq=True)
        return f"{path}?{query}" if query else path

    def part_url(self, path: str) -> str:
        """Return a link with all parameters of this request."""
        query = urlencode(self.params, doseq=True)
        return f"{path}?{query}" if query else path

    def selected(self, since: str) -> Iterator[tuple[str, str]]:
        """Yield the options and values by which a command selects the same; `since`: where no start is named."""
        for name in SHARED:
            values = self.params.get(name, (since,) if name == "since" else ())
            for value in values if name in REPEATED else values[-1:]:
                yield name, value

    def time(self, ns: int, digits: int = 3) -> str:
        """Return a time in the zone asked for."""
        return written(ns, self.zone, digits)


def url_time(ns: int, digits: int = 9) -> str:
    """Return a moment as a URL has it, in UTC."""
    return f"{written(ns, UTC, digits).replace(' ', 'T')}Z"


def _check(params: Mapping[str, Sequence[str]]) -> None:
    for name, values in params.items():
        if len(values) > _MOST or any(len(value) > LONGEST for value in values):
            most = f"at most {_MOST} values of {LONGEST:,} characters each are taken"
            raise BadRequest(f"the parameter {name[:40]!r} is too long: {most}\nshorten the URL")


def _selection(
    params: Mapping[str, Sequence[str]], first: Moment, last: Moment | None, now_ns: int, its_zone: Zone
) -> Selection:
    since_ns = first.at(now_ns, its_zone)
    until_ns = now_ns + _AHEAD_NS if last is None else last.at(now_ns, its_zone)
    if since_ns >= until_ns:
        begins, ends = (f"{written(one, its_zone)} {its_zone.name}" for one in (since_ns, until_ns))
        raise BadRequest(f"`since` ({begins}) is not before `until` ({ends})\nchange one of them")
    last_of = {name: values[-1] for name, values in params.items()}
    return Selection(
        since_ns,
        until_ns,
        service=last_of.get("service"),
        route=last_of.get("route"),
        model=last_of.get("model"),
        segments=dict(_segment(text) for text in params.get("segment", ())),
        judged_by=last_of.get("judged-by"),
        causes=tuple(dict.fromkeys(params.get("cause", ()))),
        codes=tuple(dict.fromkeys(params.get("code", ()))),
    )


def _segment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise BadRequest(f"segment={text[:80]!r} is not KEY=VALUE\nname an attribute and its value: tenant=acme")
    return key, value

"""The options that verbs share, each with one meaning everywhere, and their values: store, selection, trace, policy."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
import time
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from stagetrace import settings
from stagetrace.causes.cause import CAUSES
from stagetrace.cli.registry import Option, UsageError
from stagetrace.columns import SCHEMA
from stagetrace.errors import PolicyError, UnknownTrace
from stagetrace.output import units
from stagetrace.output.units import FORMS, UTC, Moment, Zone, moment, zone
from stagetrace.store.base import CANDIDATES, Reader, Selection, default_folder, forms

if TYPE_CHECKING:
    from stagetrace.policy.policy import Policy
    from stagetrace.store.follow import Latest

# Without --until there is no upper end: clocks of traced machines run ahead of ours, and their newest spans count.
_AHEAD_NS: Final = 86_400 * 10**9
_FOREVER_NS: Final = 2**63 - 1
_HOUR: Final = Moment(3600 * 10**9, ago=True)
_MOST: Final = 10**18
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # of RFC 9110: the name of a header
ABOVE_0, FINITE = sys.float_info.min, sys.float_info.max  # ends for `number_between`
SHOWN: Final = 15  # of a list: with its heads within 20 lines
EVER: Final = Moment(0, ago=False)
NEWEST: Final = f"the newest {SHOWN}, with --json all"  # what `list_size` does: `selection_options(limit=NEWEST)`

# --- Readers of values, for options of any verb.


class Suggested(tuple[str, ...]):
    """Values of an option that shells complete, where others may be given too: `choices` that refuse nothing."""

    __slots__ = ()

    def __contains__(self, _value: object) -> bool:
        return True


def utf8(text: str) -> str:
    """Return an argument that names stored data, which is UTF-8; a path may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{text!r} is not UTF-8, and all that is stored is") from None
    return text


def segment(text: str) -> tuple[str, str]:
    """Return key and value of `KEY=VALUE`."""
    key, equals, value = utf8(text).partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r} is not KEY=VALUE")
    return key, value


def count(text: str) -> int:
    """Return a whole number from 1 on; numbers beyond any store's size are capped."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(f"{text!r} is not a whole number from 1 on")
    return min(int(text), _MOST)


def number_between(low: float, high: float, is_not: str) -> Callable[[str], float]:
    """Return a reader of numbers from `low` to `high`; `is_not`: what is wrong with any other text."""

    def read(text: str) -> float:
        try:
            found = float(text)
        except ValueError:
            found = nan
        if not low <= found <= high:
            raise ValueError(f"{text!r} {is_not}")
        return found

    return read


seconds: Final = number_between(
    0.05, 3600, "is not a number of seconds from 0.05 to 3600"
)  # between two looks at a store


def _cause(text: str) -> str:
    """Return a word that `sla.breach.cause` may be."""
    if text not in CAUSES:
        raise ValueError(f"{text!r} is no cause; there are {', '.join(CAUSES)}")
    return text


def _code(text: str) -> str:
    """Return a line of code, whole or in part."""
    if not text:
        raise ValueError("it is empty; name a line of code, as app.py:41")
    return utf8(text)


def duration(text: str) -> float:
    """Return a duration in seconds, more than 0."""
    seconds = delay(text)
    if seconds <= 0:
        raise ValueError(f"{text!r} must be more than zero")
    return seconds


def delay(text: str) -> float:
    """Return a duration in seconds, 0 or more; without a unit it is of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text, re.ASCII)
    if match is None or (match[2] or "s") not in _UNITS:
        raise ValueError(f"{text!r} is no duration: write 50ms, 30s or 2m")
    return float(match[1]) * _UNITS[match[2] or "s"]


def header(text: str) -> tuple[str, str]:
    """Return name and value of a header."""
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon or not _TOKEN.fullmatch(name):
        raise ValueError(f"{text!r} is no header: write 'name: value'")
    if not all(c == "\t" or " " <= c <= "~" or "\x80" <= c <= "\xff" for c in value):
        raise ValueError(f"the value of the header {name} has characters that none may have")
    if name.lower() in ("traceparent", "content-length", "transfer-encoding", "connection", "upgrade"):
        raise ValueError(f"the header {name} is set by stagetrace itself")
    return name, value


# --- The options.

_HELD: Final = {column.name: column.attribute for column in SCHEMA}  # column -> the attribute that it holds
JSON: Final = Option("--json", "print one JSON object")
ZONE: Final = Option(
    "--tz ZONE",
    "zone of the times shown, and of those given without an offset: local, or a name as Europe/Berlin; default: UTC",
    zone,
    UTC,
)
POLICY: Final = Option(
    "--policy TEXT|FILE",
    f"the objectives: an inline policy, or a file (sla.yaml, or OpenSLO v1); default: ${settings.SLA.name}",
)
JUDGED: Final = Option(
    "--sla TEXT|FILE",
    "judge requests that carry no verdict, as spans of other senders, by these objectives: duration, route, status",
)
BREACHED: Final = Option("--breached", "with latest: the newest breach")


def store_option(what: str) -> Option:
    """Return `--store`."""
    return Option("--store URL", f"{what}; default: ${settings.STORE.name}, else the local data folder if there is one")


STORE: Final = store_option(f"where to read: {forms()}")
_SELECTION: Final = (
    STORE,
    Option("--service NAME", "only this service; default: all that the store holds", utf8),
    Option("--route ROUTE", f"only requests of this route, as it is recorded in {_HELD['route']}: /items/{{id}}", utf8),
    Option("--model NAME", f"only requests that this model served ({_HELD['model']})", utf8),
    Option(
        "--segment KEY=VALUE",
        "only requests with this attribute, of the entry span (docs/attributes.md) or its resource; may be repeated, "
        "all must hold",
        segment,
        repeats=True,
    ),
)
_BREACHES: Final = (
    Option(
        "--judged-by OBJECTIVE",
        "only requests that this objective judged, whether or not their spans show this one "
        f"({_HELD['objective']}, {_HELD['verdicts']}); of breaches, those that missed it",
        utf8,
    ),
    Option(
        "--cause NAME",
        f"only breaches with this cause ({_HELD['cause']}), one of {', '.join(CAUSES)}; may be repeated, one must hold",
        _cause,
        repeats=True,
        choices=Suggested(CAUSES),
    ),
    Option(
        "--code LINE",
        f"only breaches at this line of code ({_HELD['code']}): app.py:41, all of a file: app.py, or with * for any "
        "characters: '*in predict'; may be repeated, one must hold",
        _code,
        repeats=True,
    ),
)


def selection_options(
    since: str = "1h, of a file all of it",
    *,
    until: bool = True,
    cause: bool = True,
    sla: bool = True,
    limit: str = "all",
) -> tuple[Option, ...]:
    """Return `--store` and all options that select requests; `since` and `limit` describe their defaults."""
    before = Option("--until WHEN", "until when, exclusive, in the forms of --since; default: no end", moment)
    return (
        *_SELECTION,
        *(_BREACHES if cause else ()),
        Option("--since WHEN", f"from when on: {FORMS}; default: {since}", moment),
        *((before,) if until else ()),
        ZONE,
        *((JUDGED,) if sla else ()),
        Option("--limit N", f"only the newest N requests; default: {limit}", count),
        JSON,
    )


# --- The store and the selection that a command line names.


ALONE: Final[dict[str, str | None]] = dict.fromkeys(("service", "route", "model", "since", "until", "segment"))


def next_command(args: argparse.Namespace, verb: str, *more: str, **values: str | None) -> str:
    """Return a command of the same store and selection, as far as a command line names them; `values` go before."""
    own = vars(args)
    given = {name: own.get(name) for name in ("store", "service", "route", "model", "since", "until")} | values
    words = ["stagetrace", *verb.split(), *more]
    for name, value in given.items():
        text = value.text if isinstance(value, Moment) else value
        words += [f"--{name}", text] if text else []
    segments = [] if "segment" in values else [f"{key}={value}" for key, value in own.get("segment", ())]
    return shlex.join([*words, *(word for one in segments for word in ("--segment", one))])


def list_size(args: argparse.Namespace) -> int | None:
    """Return how many requests a list shows: `--limit`, else `SHOWN` to people, and all in JSON (None)."""
    limit: int | None = args.limit
    return limit if limit is not None or args.json else SHOWN


def store_url(args: argparse.Namespace) -> str:
    """Return the URL from the option, the environment, or the local data folder. Raise UsageError if there is none."""
    url = _url(args) or default_url()
    if url is None:
        raise UsageError(
            f"no store to read from\ngive --store jaeger://localhost:16685, or set {settings.STORE.name}\n"
            "or fill the local one: stagetrace up"
        )
    return url


def default_url() -> str | None:
    """Return the URL of the store of the environment, or of the local data folder; None where there is neither."""
    folder = default_folder()
    return settings.STORE.read() or (folder.as_uri().replace("file:", "local:", 1) if folder.is_dir() else None)


def local_folder(args: argparse.Namespace) -> Path:
    """Return the folder of the local store that is meant, there or not. Raise UsageError for another kind of store."""
    url = _url(args)
    if not url:
        return default_folder()
    scheme, has_scheme, path = url.partition("://")
    if not has_scheme:
        return Path(url)
    if scheme.lower() != "local":
        raise UsageError(f"{url} is no local store, and only these can be written to\ngive --store FOLDER")
    return Path(unquote(path))


def _url(args: argparse.Namespace) -> str | None:
    """Return the URL that the option or the environment names, if one does.

    Raise UsageError for an empty option: a script's variable that is not set must not stand for the default store.
    """
    given: str | None = args.store
    if given == "":
        raise UsageError("--store is empty\nname a store, or leave the option out for the default one")
    return given or settings.STORE.read() or None


def is_file(url: str) -> bool:
    """Return whether a store is a file: a recording, to which the present time means nothing."""
    return url.lower().startswith("file://") or ("://" not in url and Path(url).is_file())


def selection(
    args: argparse.Namespace, url: str, *, since: Moment | None = None, breached: bool | None = None
) -> Selection:
    """Return the selection of `selection_options`; `since` is the verb's own default, if it has one."""
    start = args.since or since or (EVER if is_file(url) else _HOUR)
    until = getattr(args, "until", None)
    since_ns, until_ns = window(start, until, args.tz)
    if until is None and is_file(url):
        until_ns = _FOREVER_NS  # all of it, whatever its clock was
    segments = dict(args.segment)
    if len(segments) < len(args.segment):
        raise UsageError("--segment names one attribute twice\none request has one value of it")
    return Selection(
        since_ns,
        until_ns,
        service=args.service,
        route=args.route,
        model=args.model,
        segments=segments,
        breached=breached,
        judged_by=getattr(args, "judged_by", None),
        causes=tuple(dict.fromkeys(getattr(args, "cause", ()))),
        codes=tuple(dict.fromkeys(getattr(args, "code", ()))),
        limit=args.limit,
    )


def window(since: Moment, until: Moment | None, zone: Zone = UTC) -> tuple[int, int]:
    """Return the window in ns since 1970. Raise UsageError if it is empty."""
    now = time.time_ns()
    start, end = since.at(now, zone), now + _AHEAD_NS if until is None else until.at(now, zone)
    if start >= end:
        first, last = (f"{units.shown(one, zone)} {zone.name}" for one in (start, end))
        raise UsageError(f"--since ({first}) is not before --until ({last})")
    return start, end


# --- A trace: by a whole id, its first digits, or `latest`.

LATEST: Final = "latest"
_DIGITS: Final = 32


def trace_id(text: str) -> str:
    """Return an id, its first digits or `latest`."""
    if text == LATEST:
        return text
    if not re.fullmatch(r"[0-9a-fA-F]{4,32}", text) or text == "0" * _DIGITS:
        raise ValueError(f"{text!r} is neither {LATEST} nor a trace id: 32 hex digits, or the first of them")
    return text.lower()


TRACE: Final = Option(
    "ID",
    "trace id, or its first digits (4 or more), or latest: the newest request, else root",
    trace_id,
    choices=Suggested((LATEST,)),
)


def whole_id(reader: Reader, given: str, service: str | None, *, breached: bool) -> Latest:
    """Return the trace that is meant. Raise StagetraceError where there is none, or more than one.

    `given`: an id, its first digits, or `latest`: the newest request, of a service and breached if these are given;
    where there is no request, the newest root, which its note says.
    """
    from stagetrace.store.follow import Latest, latest

    if given == LATEST:
        return latest(reader, service, breached=True if breached else None)
    if len(given) == _DIGITS:
        return Latest(given)
    found = reader.trace_ids(given)
    if not found.ids:
        why = "it may have been sampled out, or be elsewhere" if found.reason is None else found.reason
        raise UnknownTrace(f"there is no trace whose id begins with {given}\n{why}\ngive the whole id, of 32 digits")
    if len(found.ids) > 1:
        more = ", and maybe more" if len(found.ids) == CANDIDATES else ""
        raise UsageError(
            f"{given} begins the ids of {len(found.ids)} traces{more}: {', '.join(found.ids)}\ngive more of it"
        )
    return Latest(found.ids[0])


# --- A policy: inline, of a file, or the one that `up` evaluates.


def policy_of(args: argparse.Namespace) -> Policy:
    """Return the policy that a command line names. Raise UsageError without one, PolicyError for an unreadable one."""
    from stagetrace.policy.policy import Policy

    if isinstance(args.policy, Policy):  # that of `up`, whose page asks
        return args.policy
    given: str = args.policy if args.policy is not None else settings.SLA.read()
    if not given.strip():
        raise UsageError(
            'no objectives are given\nadd --policy sla.yaml or --policy "* within 1s", or set STAGETRACE_SLA'
        )
    return read_policy(given)


def read_policy(given: str) -> Policy:
    """Return an inline policy, or that of a file. Raise PolicyError for an unreadable one."""
    from stagetrace.policy.policy import Policy, file_named
    from stagetrace.policy.policy_file import content, decoded, is_openslo
    from stagetrace.rules import openslo_read

    path = file_named(given)
    if path is None:
        return Policy.parse(given)
    text = decoded(content(path), path)
    if not is_openslo(text):
        return Policy.read(text, path)
    found = openslo_read.read(text, path)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    return found.policy


def policy_if_any(args: argparse.Namespace) -> tuple[Policy | None, str | None]:
    """Return the policy of a command line, of the `up` that serves the store, or of STAGETRACE_SLA; None without one.

    And what is wrong where one that the command line does not name cannot be read: a command that does without it goes
    on. Raise PolicyError for an unreadable one of the command line.
    """
    if args.policy is not None:
        return policy_of(args), None
    try:
        folder = local_folder(args)
    except UsageError:  # a store of another kind
        evaluated = None
    else:
        from stagetrace.backend.alerts import saved

        try:
            evaluated = saved.read_policy(folder)
        except PolicyError as error:
            return None, f"the policy that `up` evaluates is not used: {str(error).splitlines()[0]}"
    if evaluated is not None or not settings.SLA.read().strip():
        return evaluated, None
    try:
        return policy_of(args), None
    except PolicyError as error:
        return None, f"{settings.SLA.name} is not used: {str(error).splitlines()[0]}"

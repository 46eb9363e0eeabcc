"""The options that verbs share, each with one meaning everywhere, and their values: a store and a selection."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from stagetrace import settings
from stagetrace.causes.cause import CAUSES
from stagetrace.cli.registry import UsageError
from stagetrace.columns import SCHEMA
from stagetrace.output import units
from stagetrace.output.units import FORMS, UTC, Moment, Zone, moment, zone
from stagetrace.store.base import SCHEMES, Selection, default_folder

# Without --until there is no upper end: clocks of traced machines run ahead of ours, and their newest spans count.
_AHEAD_NS: Final = 86_400 * 10**9
_FOREVER_NS: Final = 2**63 - 1
_HOUR: Final = Moment(3600 * 10**9, ago=True)
_MOST: Final = 10**18
_EVER: Final = Moment(0, ago=False)
_HELD: Final = {column.name: column.attribute for column in SCHEMA}  # column -> the attribute that it holds
_SHOWN: Final = 20
NEWEST: Final = f"the newest {_SHOWN}, with --json all"  # what `shown` does: `add_selection(limit=NEWEST)`


class Suggested(tuple[str, ...]):
    """Values of an option that shells complete, where others may be given too: `choices` that refuse nothing."""

    __slots__ = ()

    def __contains__(self, _value: object) -> bool:
        return True


def add_store(parser: argparse.ArgumentParser, what: str = "where to read") -> None:
    """Add `--store`."""
    forms = ", ".join(scheme.form for scheme in SCHEMES.values())
    parser.add_argument(
        "--store",
        metavar="URL",
        help=f"{what}: {forms}; default: ${settings.STORE.name}, else the local data folder if there is one",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def add_selection(
    parser: argparse.ArgumentParser,
    since: str = "1h, of a file all of it",
    *,
    until: bool = True,
    cause: bool = True,
    limit: str = "all",
) -> None:
    """Add `--store` and all options that select requests; `since` and `limit` describe their defaults."""
    add_store(parser)
    parser.add_argument(
        "--service", metavar="NAME", type=utf8, help="only this service; default: all that the store holds"
    )
    parser.add_argument(
        "--route",
        metavar="ROUTE",
        type=utf8,
        help=f"only requests of this route, as it is recorded in {_HELD['route']}: /items/{{id}}",
    )
    parser.add_argument(
        "--model", metavar="NAME", type=utf8, help=f"only requests that this model served ({_HELD['model']})"
    )
    parser.add_argument(
        "--segment",
        metavar="KEY=VALUE",
        type=segment,
        action="append",
        default=[],
        help="only requests with this attribute, of the entry span (docs/attributes.md) or its resource; "
        "may be repeated, all must hold",
    )
    if cause:
        _add_breaches(parser)
    parser.add_argument(
        "--since",
        metavar="WHEN",
        type=moment,
        help=f"from when on: {FORMS}; default: {since}",
    )
    if until:
        parser.add_argument(
            "--until",
            metavar="WHEN",
            type=moment,
            help="until when, exclusive, in the forms of --since; default: no end",
        )
    add_zone(parser)
    parser.add_argument("--limit", metavar="N", type=count, help=f"only the newest N requests; default: {limit}")
    add_json(parser)


def _add_breaches(parser: argparse.ArgumentParser) -> None:
    """Add the options that select breaches, or the requests of one objective."""
    parser.add_argument(
        "--judged-by",
        metavar="OBJECTIVE",
        type=utf8,
        help="only requests that this objective judged, whether or not their spans show this one "
        f"({_HELD['objective']}, {_HELD['verdicts']}); of breaches, those that missed it",
    )
    parser.add_argument(
        "--cause",
        metavar="NAME",
        type=_cause,
        action="append",
        default=[],
        help=f"only breaches with this cause ({_HELD['cause']}), one of {', '.join(CAUSES)}; "
        "may be repeated, one must hold",
    )
    parser.add_argument(
        "--code",
        metavar="LINE",
        type=_code,
        action="append",
        default=[],
        help=f"only breaches at this line of code ({_HELD['code']}): app.py:41, all of a file: app.py, or with * "
        "for any characters: '*in predict'; may be repeated, one must hold",
    )


def add_zone(parser: argparse.ArgumentParser) -> None:
    """Add `--tz`."""
    parser.add_argument(
        "--tz",
        metavar="ZONE",
        type=zone,
        default=UTC,
        help="zone of the times shown, and of those given without an offset: local, or a name as Europe/Berlin; "
        "default: UTC",
    )


def shown(args: argparse.Namespace) -> int | None:
    """Return how many requests a list shows: `--limit`, else 20 to people, and all in JSON (None)."""
    limit: int | None = args.limit
    return limit if limit is not None or args.json else _SHOWN


def store_url(args: argparse.Namespace) -> str:
    """Return the URL from the option, the environment, or the local data folder. Raise UsageError if there is none."""
    url = _named(args)
    if url:
        return url
    folder = default_folder()
    if not folder.is_dir():
        raise UsageError(
            f"no store to read from\ngive --store jaeger://localhost:16685, or set {settings.STORE.name}\n"
            "or fill the local one: stagetrace up"
        )
    return folder.as_uri().replace("file:", "local:", 1)


def local_folder(args: argparse.Namespace) -> Path:
    """Return the folder of the local store that is meant, there or not. Raise UsageError for another kind of store."""
    url = _named(args)
    if not url:
        return default_folder()
    scheme, found, path = url.partition("://")
    if not found:
        return Path(url)
    if scheme.lower() != "local":
        raise UsageError(f"{url} is no local store, and only these can be written to\ngive --store FOLDER")
    return Path(unquote(path))


def _named(args: argparse.Namespace) -> str | None:
    """Return the URL that the option or the environment names, if one does.

    Raise UsageError for an empty option: a script's variable that is not set must not stand for the default store.
    """
    given: str | None = args.store
    if given == "":
        raise UsageError("--store is empty\nname a store, or leave the option out for the default one")
    return given or settings.STORE.read() or None


def selection(
    args: argparse.Namespace, url: str, *, since: Moment | None = None, breached: bool | None = None
) -> Selection:
    """Return the selection of the options of `add_selection`; `since` is the verb's own default, if it has one."""
    start = args.since or since or (_EVER if is_file(url) else _HOUR)
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


def utf8(text: str) -> str:
    """Return an argument that names stored data, which is UTF-8; a path may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8, and all that is stored is") from None
    return text


def segment(text: str) -> tuple[str, str]:
    """Return key and value of `KEY=VALUE`."""
    key, equals, value = utf8(text).partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _cause(text: str) -> str:
    """Return a word that `sla.breach.cause` may be."""
    if text not in CAUSES:
        raise argparse.ArgumentTypeError(f"{text!r} is no cause; there are {', '.join(CAUSES)}")
    return text


def _code(text: str) -> str:
    """Return a line of code, whole or in part."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a line of code, as app.py:41")
    return utf8(text)


def count(text: str) -> int:
    """Return a whole number from 1 on; numbers beyond any store's size are capped."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return min(int(text), _MOST)


def is_file(url: str) -> bool:
    """Return whether a store is a file: a recording, to which the present time means nothing."""
    return url.lower().startswith("file://") or ("://" not in url and Path(url).is_file())


def seconds(text: str) -> float:
    """Return a number of seconds between two looks at a store."""
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0.05 <= found <= 3600:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.05 to 3600")
    return found

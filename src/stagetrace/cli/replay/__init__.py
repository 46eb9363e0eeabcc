"""`stagetrace replay`: send one stored request to a test instance, alone and among what was around it."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.cli.arguments import (
    ALONE,
    STORE,
    TRACE,
    count,
    duration,
    header,
    next_command,
    store_url,
    utf8,
    whole_id,
)
from stagetrace.cli.ask import PRINTED, print_answer
from stagetrace.cli.output import Progress, show_progress
from stagetrace.cli.registry import Option, UsageError
from stagetrace.errors import UnknownTrace
from stagetrace.output.breaches import part, verdict_of
from stagetrace.store import open_store
from stagetrace.store.base import SERVER, Entry, Selection

if TYPE_CHECKING:
    import argparse

    from stagetrace.analysis.replay_breach import Sent, Situation
    from stagetrace.load.base import Target
    from stagetrace.load.http import Message
    from stagetrace.store.base import Reader

DESCRIPTION: Final = (
    "Send a stored request to a test instance again: alone, then among the requests that were around it in the same\n"
    "process, each as long after the others as it was. Where it is late only among them, one route after the other is\n"
    "left out, which shows the one that is in the way. Late means: more than the request's threshold from when it was\n"
    "due until the end of its response, as this client measures it. No bodies are recorded: give them by --body. Only\n"
    "a service on this machine is loaded, unless --i-own-this.\n\n"
    "Exit code 0: answered. 2: wrong usage, or too much of what was sent failed to tell."
)
EXAMPLE: Final = "stagetrace replay latest --against http://localhost:9000 --body '/predict=@predict.json'"
_BODY: Final = re.compile(r"((?:[A-Z]+ )?/[^=]*)=(.*)", re.DOTALL)
_NEEDED: Final = ("numpy", "httptools")
_LISTED: Final = 5  # routes in an error


class _Body(NamedTuple):
    """A body as it is given, and of which route; None: of the request itself."""

    route: str | None
    text: str


def body(text: str) -> _Body:
    """Return route and body of `ROUTE=TEXT`, or of the body alone."""
    found = _BODY.fullmatch(text)
    return _Body(None, text) if found is None else _Body(utf8(found[1]), found[2])


def repeats(text: str) -> int:
    """Return how often to send, not so seldom that nothing would show."""
    from stagetrace.analysis.replay_breach import LEAST_REPEATS

    found = count(text)
    if found < LEAST_REPEATS:
        raise ValueError(f"{text} times are too few to tell chance from cause: {LEAST_REPEATS} at least")
    return found


OPTIONS: Final = (
    TRACE._replace(
        names="TRACE", about="trace id, or its first digits (4 or more), or latest: the newest breach", key="id"
    ),
    Option("--against URL", "the test instance: http(s)://HOST:PORT, without a path", required=True),
    Option(
        "--body [ROUTE=]TEXT",
        "what to send to a route, '/predict=@predict.json' or 'POST /predict={\"x\": 1}', @FILE being a file; without "
        "a route, of the request itself; may be repeated",
        body,
        repeats=True,
    ),
    Option("--filler", "send zeros in place of bodies that are not given, as many as were recorded"),
    Option("-H --header NAME:VALUE", "a header of every request; may be repeated", header, repeats=True),
    Option("--objective TIME", "what is late: 50ms; default: the threshold that judged the request", duration),
    Option("--repeat N", "how often each is sent; with a route left out half as often; default: 10", repeats, 10),
    Option("--before TIME", "send what began so long before it, too; default: 5s", duration, 5.0),
    Option("--timeout TIME", "when a request has failed; default: 30s", duration, 30.0),
    Option("--ca FILE", "trust these certificates (PEM) in place of the system's"),
    Option("--insecure", "of HTTPS: check no certificate"),
    Option("--i-own-this", "the test instance is beyond this machine, is yours, and may be loaded"),
    STORE,
    Option("--service NAME", "of a trace through several services, the request of this one", utf8),
    Option("--json", "print one JSON object"),
    *PRINTED,
)


def run(args: argparse.Namespace) -> int:
    """Send all runs, print the answer and return the exit code."""
    from stagetrace.load.base import addresses, answering, check_installed

    check_installed("replay", *_NEEDED)
    target = _target(args.against)
    known = addresses(target, own=args.i_own_this)
    with open_store(store_url(args)) as reader, show_progress(reader):
        entry = _entry(reader, args)
        threshold_ms = _threshold_ms(entry, args)
        situation, reason = _situation(reader, entry, args)
    bodies = _bodies(args, situation)

    from stagetrace.cli.replay import view
    from stagetrace.cli.replay.runs import Runs
    from stagetrace.load.http import Address, HttpSender, connections, tls

    encrypted = tls(args.ca, insecure=args.insecure) if target.is_tls else None
    where = Address(answering(target, known), target.port, encrypted, target.host)
    messages = _messages(args, target, situation, bodies)

    def sender(requests: tuple[Sent, ...]) -> HttpSender:
        made = [messages[one] for one in requests]
        return HttpSender(where, made, connections=connections(_CONNECTIONS), expected=range(200, 400))

    progress = Progress("requests")
    try:
        result = Runs(sender, args.timeout, threshold_ms, progress).run(situation, args.repeat)
    finally:
        progress.end()
    about = view.About(entry, situation, threshold_ms, args.against, args.before, bodies, filled=args.filler)
    found = view.answer(result, about)
    step = next_command(args, "why", entry.trace_id, **ALONE)
    return print_answer(args, replace(found, reason=reason, steps=[step]))


_CONNECTIONS: Final = 1000


def _target(url: str) -> Target:
    """Return the test instance. Raise LoadError or UsageError for what no recorded HTTP request can be sent to."""
    from stagetrace.load.base import parse

    target = parse(url)
    if target.is_grpc:
        raise UsageError("replay sends HTTP alone, and not gRPC\ngive http://HOST:PORT")
    if target.path != "/":
        base = f"{target.scheme}://{target.authority}"
        raise UsageError(f"{url} has a path, and the recorded requests have their own\ngive --against {base}")
    return target


def _entry(reader: Reader, args: argparse.Namespace) -> Entry:
    """Return the request that is meant: of several in its trace the worst breach, else the longest."""
    meant = whole_id(reader, args.id, args.service, breached=True)
    trace = reader.trace(meant.trace_id)
    judged = [verdict_of(span, trace.spans).entry for span in trace.spans if span.kind == SERVER]
    own = [one for one in judged if args.service in (None, one.service)]
    if not own:
        of = "" if args.service is None else f" of {args.service}"
        draw = f"draw it: stagetrace trace {meant.trace_id}"
        raise UnknownTrace(f"trace {meant.trace_id} has no request{of}: no span of kind SERVER\n{draw}")
    return max(own, key=lambda one: (one.overrun_ms or 0.0, one.duration_ms))


def _threshold_ms(entry: Entry, args: argparse.Namespace) -> float:
    """Return above which latency the request is late. Raise UsageError where that is not known."""
    if args.objective is not None:
        return float(args.objective) * 1e3
    remedy = "give it: --objective 50ms"
    if entry.threshold_ms is None:
        raise UsageError(f"{entry.name} ({entry.trace_id}) has no threshold: no objective judged it\n{remedy}")
    missed = part(entry)
    if missed is not None:
        raise UsageError(f"{entry.name} missed its {missed.bound}, and replay measures whole responses\n{remedy}")
    return entry.threshold_ms


def _situation(reader: Reader, entry: Entry, args: argparse.Namespace) -> tuple[Situation, str | None]:
    """Return the request with what was around it, and what the store lacks of that."""
    from stagetrace.analysis import replay_breach

    before_ns = int(args.before * 1e9)
    since = max(0, entry.start_unix_nano - max(before_ns, replay_breach.LOOK_BACK_NS))
    wanted = Selection(since, max(entry.end_unix_nano, entry.start_unix_nano + 1), service=entry.service)
    with reader.relations(wanted) as relations:
        found = replay_breach.ask(relations, entry.trace_id, entry.span_id, entry.start_unix_nano, before_ns)
    if isinstance(found, str):
        raise UsageError(f"{entry.name} ({entry.trace_id}) cannot be sent again: {found}\nchoose another one")
    return found, relations.reason


# --- The bodies, which are not recorded, and the requests in bytes.


def _bodies(args: argparse.Namespace, situation: Situation) -> dict[str, bytes]:
    """Return the body of each route for which one is given. Raise UsageError where one is missing."""
    from stagetrace.load.base import body_of

    routes = sorted({one.route for one in situation.requests})
    found: dict[str, bytes] = {}
    for one in args.body:
        wanted = situation.request.route if one.route is None else one.route
        meant = [route for route in routes if wanted in (route, route.partition(" ")[2])]
        if not meant:
            raise UsageError(f"--body names {wanted}, which is not replayed\nreplayed are {_listed(routes)}")
        found |= dict.fromkeys(meant, body_of(one.text))
    sizes: dict[str, int] = {}
    for each in situation.requests:
        if each.body_bytes and each.route not in found:
            sizes[each.route] = max(each.body_bytes, sizes.get(each.route, 0))
    if sizes and not args.filler:
        had = _listed([f"{route} ({size:,} bytes)" for route, size in sizes.items()])
        each_body = " ".join(f"--body {shlex.quote(f'{route}=@{_file(route)}')}" for route in list(sizes)[:_LISTED])
        raise UsageError(
            f"no bodies are recorded, and these routes had one: {had}\ngive {each_body}\n"
            "or --filler for zeros of that size, which a service may refuse before it works"
        )
    return found


def _file(route: str) -> str:
    """Return a name for the file with the body of a route, for an example."""
    words = re.findall(r"[A-Za-z0-9-]+", route)
    return f"{words[-1].lower() if len(words) > 1 else 'body'}.json"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(names[:_LISTED])}{more}"


def _messages(
    args: argparse.Namespace, target: Target, situation: Situation, bodies: dict[str, bytes]
) -> dict[Sent, Message]:
    """Return each request in bytes; those that are alike share them."""
    from stagetrace.load.base import MOST_BYTES, quoted
    from stagetrace.load.http import headers, message

    made: dict[tuple[str, ...], Message] = {}
    found: dict[Sent, Message] = {}
    for one in situation.requests:
        filler = one.body_bytes if args.filler and one.route not in bodies else 0
        key = (one.route, one.method, one.path, one.query, str(filler))
        if key not in made:
            content = bodies.get(one.route) or (bytes(filler) if filler else None)
            sent = headers(target, args.header, [content], "stagetrace-replay")
            made[key] = message(one.method, quoted(one.path, one.query), sent, content)
        found[one] = made[key]
        if sum(len(each.after) for each in made.values()) > MOST_BYTES:
            raise UsageError("all bodies together are larger than 256 MiB\nreplay less: --before 1s")
    return found

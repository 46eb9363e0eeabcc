"""The options of `stagetrace bench`, and the words that their values are written in."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.cli.arguments import count, delay, duration, header, selection_options
from stagetrace.cli.ask import PRINTED
from stagetrace.cli.registry import Option, UsageError

if TYPE_CHECKING:
    from stagetrace.analysis.bench_objective import Objective
    from stagetrace.load.base import Sender, Target

_MOST_RATE: Final = 1e6
_REPLAYED: Final = ("service", "route", "model", "since", "until", "limit", "segment")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_GATE: Final = re.compile(r"p(\d+(?:\.\d+)?):\+(\d+(?:\.\d+)?)%")
_OBJECTIVE: Final = re.compile(r"p(\d+(?:\.\d+)?):(\d+(?:\.\d+)?[a-z]+)")

RATE: Final = 50.0
START: Final = 10.0  # of --find


class Gate(NamedTuple):
    """How much slower than its baseline a percentile may be: 0.1 for 10 %."""

    percentile: float
    slower: float


def objective(text: str) -> Objective:
    """Return the objective of `p99:50ms`."""
    from stagetrace.analysis.bench_objective import Objective

    match = _OBJECTIVE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no objective: write p99:50ms")
    return Objective(_percentile(match[1]), duration(match[2]) * 1e3)


def gate(text: str) -> Gate:
    """Return the gate of `p99:+10%`."""
    match = _GATE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no gate: write p99:+10%")
    return Gate(_percentile(match[1]), float(match[2]) / 100)


def _percentile(text: str) -> float:
    share = round(float(text) / 100, 12)
    if not 0 < share < 1:
        raise ValueError(f"p{text} is no percentile: it lies between p0 and p100")
    return share


def rate(text: str) -> float:
    """Return a positive number."""
    match = re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII)
    if match is None or not 0 < float(text) <= _MOST_RATE:
        raise ValueError(f"{text!r} is not a number above 0, 1000000 at most")
    return float(text)


def _rates(text: str) -> list[float]:
    return [rate(one.strip()) for one in text.split(",")]


def _method(text: str) -> str:
    if not _TOKEN.fullmatch(text):
        raise ValueError(f"{text!r} is no HTTP method")
    if text.upper() in ("HEAD", "CONNECT"):
        raise ValueError(f"{text.upper()} is not sent by bench: its responses end otherwise")
    return text.upper()


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no name of a baseline: letters, digits, . _ and - make one")
    return text


def _statuses(text: str) -> frozenset[int]:
    if not re.fullmatch(r"\d{3}(,\d{3})*", text, re.ASCII):
        raise ValueError(f"{text!r} are no statuses: write 200,404")
    return frozenset(map(int, text.split(",")))


_RATES, _BODY = "rates", "body"  # of which one can be given
OPTIONS: Final = (
    Option("URL", "http(s)://HOST:PORT/PATH, or grpc(s)://HOST:PORT/pkg.Service/Method"),
    Option(
        "--rate N",
        f"requests per second; default: {RATE:g}; of --find the first that is tried",
        rate,
        alone=_RATES,
    ),
    Option("--rates N,N", "several rates, one after the other", _rates, alone=_RATES),
    Option("--replay", "start requests as far apart as those selected in the store did", alone=_RATES),
    Option("--find P:LIMIT", "find the highest rate that keeps an objective: p99:50ms", objective),
    Option("--max-rate N", "of --find: try no higher rate", rate),
    Option("--max-time TIME", "of --find: end after this; default: 5m", duration, 300.0),
    Option("--speed X", "of --replay: so many times as fast; default: 1", rate),
    Option(
        "--arrivals",
        "at equal distances (default), or at random as independent users come",
        default="constant",
        choices=("constant", "poisson"),
    ),
    Option("--seed N", "of --arrivals poisson; default: 1", int, 1),
    Option(
        "--duration TIME",
        "how long to send at each rate: 30s, 2m; default: as long as the percentile needs, 10s to 2m",
        duration,
    ),
    Option("--warmup TIME", "sent before and not measured; default: 1s; 0s: none", delay, 1.0),
    Option("--timeout TIME", "when a request has failed; default: 30s", duration, 30.0),
    Option("--connections N", "HTTP connections at most; default: 1000", count, 1000),
    Option("--method NAME", "of HTTP; default: GET, with a body POST", _method),
    Option("-H --header NAME:VALUE", "a header, or metadata of gRPC; may be repeated", header, repeats=True),
    Option("--body TEXT", "what to send, or @FILE; of gRPC the message as JSON", alone=_BODY),
    Option("--body-file FILE", "a file with what to send", alone=_BODY),
    Option("--bodies FILE", "a file with a body on each line, such as JSON, sent in turn", alone=_BODY),
    Option("--message-file FILE", "of gRPC: the serialised message", alone=_BODY),
    Option("--expect STATUS", "statuses that are no failure: 200,404; default: 200 to 299", _statuses),
    Option("--ca FILE", "trust these certificates (PEM) in place of the system's"),
    Option("--insecure", "of HTTPS: check no certificate"),
    Option("--objective P:LIMIT", "what must be kept: p99:50ms", objective),
    Option("--save NAME", "keep the latencies as a baseline of this name, for --against", _name),
    Option("--against NAME", "compare with the baseline of this name", _name),
    Option("--gate P:+N%", "exit code 1 if surely slower than --against by more: p99:+10%", gate),
    Option("--i-own-this", "the target is beyond this machine, is yours, and may be loaded"),
    Option("--wait TIME", "longest wait for the server's spans; default: 15s", duration, 15.0),
    *selection_options(since="1h; what --replay replays", cause=False, sla=False),
    *PRINTED,
)


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together."""
    for given, needed, what in (
        (args.speed is not None, args.replay, "--speed goes with --replay"),
        (args.max_rate is not None, args.find is not None, "--max-rate goes with --find"),
        (args.gate is not None, args.against is not None, "--gate goes with --against"),
    ):
        if given and not needed:
            raise UsageError(f"{what}\nadd that, or drop the option")
    for given, what in (
        (args.find is not None and (args.replay or args.rates), "--find tries rates of its own"),
        (args.find is not None and args.objective is not None, "--find names the objective already"),
        ((args.save or args.against) and (args.find or args.rates), "a baseline is of one rate"),
    ):
        if given:
            raise UsageError(f"{what}\ngive one or the other")
    if not args.replay:
        used = [f"--{name}" for name in _REPLAYED if getattr(args, name) not in (None, [])]
        if used:
            raise UsageError(f"{', '.join(used)} selects the requests of --replay\nadd --replay, or drop it")


# --- Makes the sender of `stagetrace bench` out of its options: protocol, address, and the bytes of the requests.

_NEEDED: Final = ("numpy", "scipy", "httptools")


def check_installed(*more: str) -> None:
    """Raise LoadError where a library is missing."""
    from stagetrace.load.base import check_installed

    check_installed("bench", *_NEEDED, *more)


def sender(args: argparse.Namespace) -> Sender:
    """Return the sender of the requests. Raise LoadError for a target that cannot or must not be loaded."""
    from stagetrace.load.base import addresses, answering, parse

    target = parse(args.url)
    address = answering(target, addresses(target, own=args.i_own_this))
    return _rpc(args, target, address) if target.is_grpc else _http(args, target, address)


def _http(args: argparse.Namespace, target: Target, address: str) -> Sender:
    from stagetrace.load.http import Address, HttpSender, connections, headers, message, tls

    if args.message_file:
        raise UsageError("--message-file is of gRPC\ngive --body-file")
    bodies = _bodies(args)
    method = args.method or ("GET" if bodies == [None] else "POST")
    sent = headers(target, args.header, bodies, "stagetrace-bench")
    messages = [message(method, target.path, sent, body) for body in bodies]
    encrypted = tls(args.ca, insecure=args.insecure) if target.is_tls else None
    where = Address(address, target.port, encrypted, target.host)
    return HttpSender(
        where, messages, connections=connections(args.connections), expected=args.expect or range(200, 300)
    )


def _rpc(args: argparse.Namespace, target: Target, address: str) -> Sender:
    from stagetrace.load.base import read_body
    from stagetrace.load.rpc import Place, RpcSender, serialise

    if args.insecure or args.expect or args.method:
        raise UsageError("--insecure, --expect and --method are of HTTP\nleave them out; --ca FILE names what to trust")
    place = Place(target, address, Path(args.ca).read_bytes() if args.ca else None)
    if args.message_file:
        messages = [read_body(args.message_file)]
    else:
        check_installed("grpc_reflection")
        texts = [b"{}" if body is None else body for body in _bodies(args)]
        messages = serialise(place, target.path, [_text(one) for one in texts])
    return RpcSender(place, target.path, messages, [(name.lower(), value) for name, value in args.header])


def _bodies(args: argparse.Namespace) -> list[bytes | None]:
    from stagetrace.load.base import body_of, read_body

    if args.bodies:
        lines = [line for line in read_body(args.bodies).splitlines() if line.strip()]
        if not lines:
            raise UsageError(f"there is no body in {args.bodies}\nwrite one on each line")
        return list(lines)
    if args.body_file:
        return [read_body(args.body_file)]
    return [None if args.body is None else body_of(args.body)]


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise UsageError(
            "the body is not UTF-8, and messages of gRPC are given as JSON\nor give --message-file"
        ) from None

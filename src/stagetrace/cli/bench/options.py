"""The options of `stagetrace bench`, and the words that their values are written in."""

from __future__ import annotations

import argparse
import json
import re
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import __version__
from stagetrace.cli.arguments import count, selection_options
from stagetrace.cli.ask import PRINTED
from stagetrace.cli.registry import Option, UsageError
from stagetrace.errors import StagetraceError
from stagetrace.system.packages import requirement

if TYPE_CHECKING:
    from stagetrace.analysis.bench_objective import Objective
    from stagetrace.load.base import Sender, Target

_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
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


def duration(text: str) -> float:
    """Return a duration in seconds, more than 0."""
    seconds = warmup(text)
    if seconds <= 0:
        raise ValueError(f"{text!r} must be more than zero")
    return seconds


def warmup(text: str) -> float:
    """Return a duration in seconds, 0 or more; without a unit it is of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text, re.ASCII)
    if match is None or (match[2] or "s") not in _UNITS:
        raise ValueError(f"{text!r} is no duration: write 50ms, 30s or 2m")
    return float(match[1]) * _UNITS[match[2] or "s"]


def rate(text: str) -> float:
    """Return a positive number."""
    match = re.fullmatch(r"\d+(?:\.\d+)?", text, re.ASCII)
    if match is None or not 0 < float(text) <= _MOST_RATE:
        raise ValueError(f"{text!r} is not a number above 0, 1000000 at most")
    return float(text)


def _rates(text: str) -> list[float]:
    return [rate(one.strip()) for one in text.split(",")]


def header(text: str) -> tuple[str, str]:
    """Return name and value of a header."""
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon or not _TOKEN.fullmatch(name):
        raise ValueError(f"{text!r} is no header: write 'name: value'")
    if not all(c == "\t" or " " <= c <= "~" or "\x80" <= c <= "\xff" for c in value):
        raise ValueError(f"the value of the header {name} has characters that none may have")
    if name.lower() in ("traceparent", "content-length", "transfer-encoding", "connection", "upgrade"):
        raise ValueError(f"the header {name} is set by bench itself")
    return name, value


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
    Option("--warmup TIME", "sent before and not measured; default: 1s; 0s: none", warmup, 1.0),
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
_CONNECTS_WITHIN_S: Final = 5.0
_SPARE_FILES: Final = 100
_MOST_BODIES: Final = 256 * 1024 * 1024


def check_installed(*more: str) -> None:
    """Raise StagetraceError where a library is missing."""
    missing = [name for name in (*_NEEDED, *more) if find_spec(name) is None]
    if missing:
        raise StagetraceError(f"bench needs {', '.join(missing)}\npip install {requirement('bench')}")


def sender(args: argparse.Namespace) -> Sender:
    """Return the sender of the requests. Raise LoadError for a target that cannot or must not be loaded."""
    from stagetrace.load.base import addresses, parse

    target = parse(args.url)
    address = _answering(target, addresses(target, own=args.i_own_this))
    return _rpc(args, target, address) if target.is_grpc else _http(args, target, address)


def _answering(target: Target, addresses: Sequence[str]) -> str:
    """Return the first address at which somebody listens: of `localhost` that may be either of two."""
    from stagetrace.load.base import LoadError

    why = ""
    for address in addresses:
        try:
            socket.create_connection((address, target.port), _CONNECTS_WITHIN_S).close()
        except OSError as error:  # noqa: PERF203 -- there are two at most
            why = error.strerror or str(error)
        else:
            return address
    raise LoadError(f"cannot connect to {target.host} port {target.port}: {why}\nstart the service, or check the URL")


def _http(args: argparse.Namespace, target: Target, address: str) -> Sender:
    from stagetrace.load.http import Address, HttpSender, message

    if args.message_file:
        raise UsageError("--message-file is of gRPC\ngive --body-file")
    bodies = _bodies(args)
    method = args.method or ("GET" if bodies == [None] else "POST")
    given = {name.lower() for name, _ in args.header}
    defaults = [("host", target.authority), ("accept", "*/*"), ("user-agent", f"stagetrace-bench/{__version__}")]
    headers = [(name, value) for name, value in defaults if name not in given] + list(args.header)
    if bodies != [None] and "content-type" not in given:
        headers.append(("content-type", "application/json" if _is_json(bodies) else "application/octet-stream"))
    messages = [message(method, target.path, headers, body) for body in bodies]
    where = Address(address, target.port, _tls(args) if target.is_tls else None, target.host)
    return HttpSender(where, messages, connections=_connections(args), expected=args.expect or range(200, 300))


def _rpc(args: argparse.Namespace, target: Target, address: str) -> Sender:
    from stagetrace.load.rpc import Place, RpcSender, serialise

    if args.insecure or args.expect or args.method:
        raise UsageError("--insecure, --expect and --method are of HTTP\nleave them out; --ca FILE names what to trust")
    place = Place(target, address, Path(args.ca).read_bytes() if args.ca else None)
    if args.message_file:
        messages = [_read(args.message_file)]
    else:
        check_installed("grpc_reflection")
        texts = [b"{}" if body is None else body for body in _bodies(args)]
        messages = serialise(place, target.path, [_text(one) for one in texts])
    return RpcSender(place, target.path, messages, [(name.lower(), value) for name, value in args.header])


def _bodies(args: argparse.Namespace) -> list[bytes | None]:
    if args.bodies:
        lines = [line for line in _read(args.bodies).splitlines() if line.strip()]
        if not lines:
            raise UsageError(f"there is no body in {args.bodies}\nwrite one on each line")
        return list(lines)
    if args.body_file:
        return [_read(args.body_file)]
    if args.body is None:
        return [None]
    text: str = args.body
    return [_read(text[1:]) if text.startswith("@") else text.encode("utf-8", "surrogateescape")]


def _read(path: str) -> bytes:
    try:
        if Path(path).stat().st_size > _MOST_BODIES:
            raise UsageError(f"{path} is larger than 256 MiB\ngive fewer or smaller bodies")
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise UsageError(
            "the body is not UTF-8, and messages of gRPC are given as JSON\nor give --message-file"
        ) from None


def _is_json(bodies: Sequence[bytes | None]) -> bool:
    try:
        for body in bodies:
            json.loads(body or b"")
    except ValueError:
        return False
    return True


def _tls(args: argparse.Namespace) -> Any:
    import ssl

    try:
        context = ssl.create_default_context(cafile=args.ca)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"cannot use the certificates of {args.ca}: {error.strerror or error}") from None
    if args.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _connections(args: argparse.Namespace) -> int:
    """Return how many connections there may be: no more than this process may have files open."""
    most: int = args.connections
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return most
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft - _SPARE_FILES))

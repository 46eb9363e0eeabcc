"""Makes the sender of `stagetrace bench` out of its options: protocol, address, and the bytes of the requests."""

from __future__ import annotations

import argparse
import json
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace import __version__
from stagetrace.cli.base import UsageError
from stagetrace.errors import StagetraceError
from stagetrace.installed_from import requirement

if TYPE_CHECKING:
    from stagetrace.load.base import Sender
    from stagetrace.load.target import Target

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
    from stagetrace.load.target import addresses, parse

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
    from stagetrace.load.rpc import Place, RpcSender, serialised

    if args.insecure or args.expect or args.method:
        raise UsageError("--insecure, --expect and --method are of HTTP\nleave them out; --ca FILE names what to trust")
    place = Place(target, address, Path(args.ca).read_bytes() if args.ca else None)
    if args.message_file:
        messages = [_read(args.message_file)]
    else:
        check_installed("grpc_reflection")
        texts = [b"{}" if body is None else body for body in _bodies(args)]
        messages = serialised(place, target.path, [_text(one) for one in texts])
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

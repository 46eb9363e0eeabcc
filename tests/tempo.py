"""A server on a real socket that answers as Tempo does, and one as VictoriaTraces: for neither can be built here.

No registry serves their modules. So what these do is taken from their sources and API pages (Tempo 2.6 to 3.1:
`pkg/api`, `pkg/traceql`, `modules/frontend`; VictoriaTraces 0.9: `app/vtselect/traces/tempo`), unkind parts first:

- A search gives any of the matching traces up to its limit, in no useful order; a trace is stored in several blocks,
  each of which is searched alone, and of two blocks the matches of one are shown.
- Times are whole seconds, in 32 bits with a sign; a trace is in a window with any part of it.
- Too wide a time, too high a limit and what does not parse are refused with 400 and a text; JSON leaves zeros out, has
  64 bits as text, and trace ids without their leading zeros.
- Comparisons know types: `1` is not `1.0`.

VictoriaTraces besides: what does not parse finds nothing, a span is found by its end, all values are texts.
"""

from __future__ import annotations

import json
import random
import re
import threading
from base64 import b64encode
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.trace.v1.trace_pb2 import Span, TracesData

from messages import leaves
from stagetrace.semconv import as_text
from stagetrace.store.rows import values
from store.feed import Made, readable

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Sequence

SECOND = 10**9
WEEK_S = 168 * 3600  # the widest time of a search that Tempo takes unless it is configured otherwise
_GREATEST = 2**31 - 1


class RefusedError(Exception):
    """The request is answered with 400 and this text."""


# --- TraceQL, as much of it as a spanset filter is.

_TOKEN = re.compile(
    r"""\s*(?:(?P<text>"(?:[^"\\\n]|\\.)*") | (?P<op>&&|\|\||=~|=|[(){}]) | (?P<number>-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)
    | (?P<name>(?:span|resource)\.(?:"(?:[^"\\]|\\.)*"|[^\s{}()=~!<>&|^,"]+)) | (?P<word>[a-z]+))""",
    re.VERBOSE,
)
_WORDS: dict[str, object] = {
    "true": True,
    "false": False,
    **{one: Span.SpanKind.Value(f"SPAN_KIND_{one.upper()}") for one in ("server", "client", "internal", "producer")},
}
_ESCAPES = {'"': '"', "\\": "\\", "n": "\n", "t": "\t"}


# Own attributes, those of the resource, the span.
Test: TypeAlias = Callable[[Mapping[str, object], Mapping[str, object], Span], bool]


class _Parser:
    """Reads `{ a && (b || c) }` into a function of the attributes of a span, those of its resource, and the span."""

    def __init__(self, query: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while query[at:].strip():
            found = _TOKEN.match(query, at)
            if found is None or found.lastgroup is None:
                raise RefusedError(f"invalid TraceQL query: parse error at line 1, col {at + 1}: syntax error")
            self._tokens.append((found.lastgroup, found[found.lastgroup]))
            at = found.end()

    def query(self) -> Test:
        self._expect("{")
        test: Test = (lambda *_: True) if self._peek() == "}" else self._or()
        self._expect("}")
        if self._tokens:
            raise RefusedError("invalid TraceQL query: parse error: syntax error: unexpected token")
        return test

    def _peek(self) -> str:
        return self._tokens[0][1] if self._tokens else ""

    def _next(self) -> tuple[str, str]:
        if not self._tokens:
            raise RefusedError("invalid TraceQL query: parse error: syntax error: unexpected $end")
        return self._tokens.pop(0)

    def _expect(self, token: str) -> None:
        if self._next()[1] != token:
            raise RefusedError(f"invalid TraceQL query: parse error: syntax error: expecting {token}")

    def _or(self) -> Test:
        tests = [self._and()]
        while self._peek() == "||":
            self._next()
            tests.append(self._and())
        return lambda *of: any(test(*of) for test in tests)

    def _and(self) -> Test:
        tests = [self._one()]
        while self._peek() == "&&":
            self._next()
            tests.append(self._one())
        return lambda *of: all(test(*of) for test in tests)

    def _one(self) -> Test:
        if self._peek() == "(":
            self._next()
            test = self._or()
            self._expect(")")
            return test
        kind, left = self._next()
        _, op = self._next()
        is_text, right = self._next()
        if op not in ("=", "=~") or kind not in ("name", "word"):
            raise RefusedError("invalid TraceQL query: parse error: syntax error")
        return self._comparison(left, op, self._value(is_text, right))

    def _value(self, kind: str, token: str) -> object:
        if kind == "text":
            return _unquoted(token)
        if kind == "number":
            if not token.lstrip("-").isdigit():
                return float(token)
            if abs(int(token)) >= 2**63:
                raise RefusedError(f'invalid TraceQL query: strconv.Atoi: parsing "{token}": value out of range')
            return int(token)
        if token in _WORDS:
            return _WORDS[token]
        raise RefusedError(f"invalid TraceQL query: parse error: unexpected {token}")

    def _comparison(self, left: str, op: str, value: object) -> Test:
        if left == "kind":
            return lambda _own, _resource, span: span.kind == value
        if op == "=~":
            if not isinstance(value, str):
                raise RefusedError("invalid TraceQL query: illegal operation for the given types")
            pattern = re.compile(value)

            def is_equal(has: object) -> bool:
                return isinstance(has, str) and pattern.fullmatch(has) is not None
        else:

            def is_equal(has: object) -> bool:
                return _is_equal(has, value)

        if left == "name":
            return lambda _own, _resource, span: is_equal(span.name)
        scope, _, name = left.partition(".")
        name = _unquoted(name) if name.startswith('"') else name
        if scope == "resource":
            return lambda _own, resource, _span: is_equal(resource.get(name))
        if scope != "span":
            raise RefusedError(f"invalid TraceQL query: parse error: unexpected {left}")
        return lambda own, _resource, _span: is_equal(own.get(name))


def _is_equal(has: object, value: object) -> bool:
    if isinstance(has, _Loose):
        return has == as_text(value)
    return type(has) is type(value) and has == value


def _unquoted(token: str) -> str:
    """Return what Go's strconv.Unquote makes of a text."""

    def replaced(found: re.Match[str]) -> str:
        if found[1] is not None:
            return chr(int(found[1], 16))
        if found[2] not in _ESCAPES:
            raise RefusedError("invalid TraceQL query: parse error: invalid syntax")
        return _ESCAPES[found[2]]

    return re.sub(r"\\(?:u([0-9a-f]{4})|(.))", replaced, token[1:-1])


# --- The store: blocks of traces.


class _Part(NamedTuple):
    """A trace as one block has it: its times, and its spans with their attributes and those of their resource."""

    first: int
    last: int
    spans: list[tuple[dict[str, object], dict[str, object], Span]]


@dataclass
class Tempo:
    """What a running server holds and may be asked; `asked` collects the paths and queries that came."""

    port: int = 0
    scheme: str = "tempo"
    prefix: str = ""
    max_duration_s: int | None = None
    max_limit: int = 262_144
    headers: Mapping[str, str] = field(default_factory=dict)  # that each request has to have
    refuse: tuple[int, str] | None = None
    partial: str | None = None  # of each trace
    is_victoria: bool = False
    has_unknown: bool = False  # an unknown trace is 200 and empty, not 404
    asked: list[str] = field(default_factory=list)
    blocks: list[dict[bytes, TracesData]] = field(default_factory=list)
    _searched: list[dict[bytes, _Part]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Return the URL for `stagetrace --store`."""
        return f"{self.scheme}://127.0.0.1:{self.port}{self.prefix}"

    def add(self, spans: Sequence[Made], blocks: int = 2) -> None:
        """Store spans, those of a trace by turns in each of so many blocks, as they are after a flush."""
        new: list[dict[bytes, TracesData]] = [{} for _ in range(blocks)]
        for number, one in enumerate(spans):
            data = TracesData.FromString(encode_spans([readable(one)]).SerializeToString())
            new[number % blocks].setdefault(one.trace.to_bytes(16, "big"), TracesData()).MergeFrom(data)
        self.blocks += new
        self._searched += [{trace_id: self._part(data) for trace_id, data in block.items()} for block in new]

    def search(self, query: str, start: int, end: int, limit: int) -> list[dict[str, Any]]:
        """Return any `limit` of the traces that match."""
        test = _Parser(query or "{}").query()
        found: dict[bytes, dict[str, Any]] = {}
        for block in self._searched:
            for trace_id, part in block.items():
                if one := self._match(part, test, start, end):
                    known = found.get(trace_id)
                    found[trace_id] = one if known is None else _combined(known, one)
        ids = sorted(found)
        random.Random(len(ids)).shuffle(ids)
        return [_json_of(one, found[one]) for one in ids[:limit]]

    def _match(self, part: _Part, test: Test, start: int, end: int) -> dict[str, Any] | None:
        is_apart = part.first > end * SECOND or part.last < start * SECOND
        if is_apart and (start, end) != (0, 0) and not self.is_victoria:
            return None
        matched = [span for own, resource, span in part.spans if test(own, resource, span)]
        if self.is_victoria:
            matched = [one for one in matched if start * SECOND <= one.end_time_unix_nano <= end * SECOND]
        if not matched:
            return None
        ms = (part.last - part.first) // 10**6
        return {"start": part.first, "ms": ms, "matched": len(matched), "span": matched[0]}

    def _part(self, data: TracesData) -> _Part:
        spans = [
            (self._seen(span.attributes), self._seen(resource.resource.attributes), span)
            for resource, _, span in leaves(data)
        ]
        first = min(span.start_time_unix_nano for _, _, span in spans)
        return _Part(first, max(span.end_time_unix_nano for _, _, span in spans), spans)

    def _seen(self, attributes: Any) -> dict[str, object]:
        found = values(attributes)
        return {key: _Loose(as_text(value)) for key, value in found.items()} if self.is_victoria else found

    def trace(self, trace_id: bytes) -> TracesData:
        """Return a trace out of all blocks, each span once."""
        whole, known = TracesData(), set()
        for block in self.blocks:
            for resource, scope, span in leaves(block.get(trace_id, TracesData())):
                if (span.span_id, span.kind) in known:
                    continue
                known.add((span.span_id, span.kind))
                added = whole.resource_spans.add(resource=resource.resource)
                added.scope_spans.add(scope=scope.scope).spans.add().CopyFrom(span)
        if self.is_victoria:
            for resource, _, span in leaves(whole):
                for item in (*resource.resource.attributes, *span.attributes):
                    text = as_text(values([item])[item.key])
                    item.value.Clear()
                    item.value.string_value = text
        return whole

    def services(self) -> list[str]:
        """Return the names of all services."""
        every = (leaf for block in self.blocks for data in block.values() for leaf in leaves(data))
        names = {values(resource.resource.attributes).get("service.name") for resource, _, _ in every}
        return sorted(name for name in names if isinstance(name, str))


class _Loose(str):
    """A text that equals a value with this text form, as VictoriaTraces compares."""

    __slots__ = ()


def _combined(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Return what Tempo makes of the same trace in two blocks: the longer duration, and the more matches."""
    more = max(one, other, key=lambda each: int(each["matched"]))
    return {**more, "start": min(one["start"], other["start"]), "ms": max(one["ms"], other["ms"])}


def _json_of(trace_id: bytes, one: dict[str, Any]) -> dict[str, Any]:
    span = {"spanID": one["span"].span_id.hex(), "startTimeUnixNano": str(one["span"].start_time_unix_nano)}
    spans = {"spans": [span], "matched": one["matched"]}
    found = {"traceID": trace_id.hex().lstrip("0"), "startTimeUnixNano": str(one["start"]), "spanSets": [spans]}
    return found | ({"durationMs": one["ms"]} if one["ms"] else {})


# --- HTTP.


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    tempo: Tempo

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- its name
        """Log nothing."""

    def do_GET(self) -> None:
        """Answer a request."""
        tempo, parts = self.tempo, urlsplit(self.path)
        path, asked = unquote(parts.path), {name: one[0] for name, one in parse_qs(parts.query).items()}
        tempo.asked.append(f"{path} {asked.get('q', '')}".strip())
        if any(self.headers.get(name) != value for name, value in tempo.headers.items()):
            is_tenant = "X-Scope-OrgID" in tempo.headers
            self._send(401, "text/plain", b"no org id" if is_tenant else b"authentication error: invalid credentials")
        elif tempo.refuse is not None:
            self._send(tempo.refuse[0], "text/plain", tempo.refuse[1].encode())
        elif not path.startswith(f"{tempo.prefix}/api/"):
            self._send(404, "text/plain", b"404 page not found\n")
        else:
            try:
                self._answer(path.removeprefix(tempo.prefix), asked)
            except RefusedError as error:
                self._send(400, "text/plain; charset=utf-8", str(error).encode())

    def _answer(self, path: str, asked: dict[str, str]) -> None:
        if path == "/api/search":
            self._json({"traces": self._found(asked), "metrics": {"completedJobs": 1, "totalJobs": 1}})
        elif path == "/api/v2/search/tag/resource.service.name/values":
            self._window(asked)
            self._json({"tagValues": [{"type": "string", "value": name} for name in self.tempo.services()]})
        elif path.startswith("/api/v2/traces/"):
            self._trace(path.rpartition("/")[2])
        else:
            self._send(404, "text/plain", b"404 page not found\n")

    def _window(self, asked: dict[str, str]) -> tuple[int, int]:
        for name in ("start", "end"):
            if not asked.get(name, "0").isdigit() or int(asked.get(name, "0")) > _GREATEST:
                text = asked[name]
                raise RefusedError(f'invalid {name}: strconv.ParseInt: parsing "{text}": value out of range')
        start, end = int(asked.get("start", "0")), int(asked.get("end", "0"))
        if (start, end) != (0, 0) and end <= start:
            raise RefusedError(f"http parameter start must be before end. received start={start} end={end}")
        widest = self.tempo.max_duration_s
        if widest is not None and end - start > widest:
            shown = f"{widest // 3600}h{widest // 60 % 60}m{widest % 60}s"
            raise RefusedError(f"range specified by start and end exceeds {shown}. received start={start} end={end}")
        return start, end

    def _found(self, asked: dict[str, str]) -> list[dict[str, Any]]:
        tempo, limit = self.tempo, int(asked.get("limit", "20"))
        if tempo.is_victoria:
            if limit > tempo.max_limit:
                raise RefusedError(f"incorrect query params: limit {limit} out of range [0, {tempo.max_limit}]")
            try:
                return tempo.search(asked.get("q", ""), *self._window(asked), limit)
            except RefusedError:
                return []
        window = self._window(asked)
        if limit > tempo.max_limit:
            raise RefusedError(f"limit {limit} exceeds max limit {tempo.max_limit}")
        if not 0 < int(asked.get("spss", "3")) <= 100:
            raise RefusedError(f"spans per span set exceeds 100. received {asked['spss']}")
        return tempo.search(asked.get("q", ""), *window, limit)

    def _trace(self, text: str) -> None:
        if not re.fullmatch("[0-9a-fA-F]{1,32}", text):
            raise RefusedError("trace IDs can only contain hex characters")
        trace = self.tempo.trace(bytes.fromhex(text.zfill(32)))
        if not trace.resource_spans and not self.tempo.has_unknown:
            self._send(404, "", b"")
            return
        assert self.headers["Accept"] == "application/protobuf"
        body = _field(1, trace.SerializeToString()) + _field(2, b"\x08\x05")
        if self.tempo.partial is not None:
            body += b"\x18\x01" + _field(4, self.tempo.partial.encode())
        self._send(200, "application/protobuf", body)

    def _json(self, document: dict[str, Any]) -> None:
        self._send(200, "application/json", json.dumps(document).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        if kind:
            self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _field(number: int, content: bytes) -> bytes:
    """Return a field of protobuf with a length."""
    size, length = len(content), bytearray()
    while size >= 128:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


def basic(user: str, password: str) -> str:
    """Return the header of a user and a password."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


def victoria() -> Tempo:
    """Return a VictoriaTraces."""
    return Tempo(prefix="/select/tempo", max_limit=1000, is_victoria=True, has_unknown=True)


@contextmanager
def run_tempo(tempo: Tempo | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Tempo]:
    """Run a server until the block ends."""
    tempo = Tempo() if tempo is None else tempo
    handler = type("Handler", (_Handler,), {"tempo": tempo})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
            tempo.scheme = "tempos"
        tempo.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield tempo
        finally:
            server.shutdown()
            thread.join()

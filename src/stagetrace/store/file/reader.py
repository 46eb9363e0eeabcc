"""Spans out of files: OTLP JSON lines, protobuf and JSON documents here, Parquet in `parquet.py`."""

# ruff: noqa: TRY004 -- the value is wrong in a document, whatever its type

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.parse import unquote

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stagetrace.errors import StoreError
from stagetrace.otlp.decode.json import decode_document, quote
from stagetrace.otlp.decode.request import Unreadable, read
from stagetrace.store.base import TAIL, Reader, SpanRow
from stagetrace.store.file import jaeger_json
from stagetrace.store.file.jaeger_json import Read
from stagetrace.store.message_reader import MessageReader
from stagetrace.store.rows import spans_of

# --- The forms in which JSON documents hold spans: each is recognised by its keys, then decoded; any other is named.
#
# Read are OTLP (also of before 1.0, with ids in base64, and as Tempo and `jaeger.api_v3` wrap it), Jaeger's own JSON
# and its documents in Elasticsearch. Nothing is taken for an empty request: an object without spans is an error that
# says what it looks like.

Json = dict[str, Any]
_RESOURCES: Final = ("resourceSpans", "resource_spans", "batches")  # batches: as Tempo's API has it, and OTLP of 2020
_SCOPES: Final = (
    "scopeSpans",
    "scope_spans",
    "instrumentationLibrarySpans",  # before OTLP 1.0
    "instrumentation_library_spans",
    "ilSpans",
)
_LIBRARY: Final = ("instrumentationLibrary", "instrumentation_library")
_IDS: Final = {"traceId": 16, "spanId": 8, "parentSpanId": 8, "trace_id": 16, "span_id": 8, "parent_span_id": 8}
_OTHER_SIGNALS: Final = ("resourceMetrics", "resourceLogs", "resourceProfiles")
_WRAPPERS: Final = ("result", "trace", "_source")  # jaeger.api_v3; Tempo's API; Elasticsearch
_KEYS: Final = 5  # that an error names


def parse(text: str | bytes) -> Any:
    """Return a JSON value. Raise ValueError."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON: {quote(error)}") from None


def parse_all(text: bytes) -> Iterator[Any]:
    """Yield the JSON values that stand one after another in a text, over any lines. Raise ValueError."""
    decoder, place = json.JSONDecoder(), 0
    whole = text.decode("utf-8", "replace").lstrip("\ufeff").strip()
    while place < len(whole):
        try:
            value, place = decoder.raw_decode(whole, place)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is not JSON: {quote(error)}") from None
        yield value
        while place < len(whole) and whole[place] in " \t\r\n,":
            place += 1


def read_document(document: Any) -> Read | None:
    """Return the spans of a document, None where it is of another signal. Raise ValueError where it is of no form."""
    for is_of, decode in _FORMS:
        if is_of(document):
            return decode(document)
    raise ValueError(_describe(document))


def _has(*keys: str) -> Callable[[Any], bool]:
    """Return whether a document is an object with all of these keys."""
    return lambda document: isinstance(document, dict) and all(key in document for key in keys)


def _resources(document: Any) -> str | None:
    return next((key for key in _RESOURCES if isinstance(document, dict) and key in document), None)


def _wrapper(document: Any) -> str | None:
    """Return the key under which a document holds another one."""
    return next(
        (key for key in _WRAPPERS if isinstance(document, dict) and isinstance(document.get(key), dict)
         and (key != "trace" or _resources(document[key]))), None,
    )  # fmt: skip


def _is_list_of(is_one: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda document: isinstance(document, list) and bool(document) and is_one(document[0])


def _otlp(document: Json) -> Read:
    """Decode OTLP, whose older names and ids in base64 become those of today."""
    resources = document[_resources(document) or ""]
    for resource in resources if isinstance(resources, list) else ():
        if isinstance(resource, dict):
            _modernise(resource)
    return Read(*decode_document({"resourceSpans": resources}))


def _modernise(resource: Json) -> None:
    key = next((key for key in _SCOPES if key in resource), None)
    scopes = [] if key is None else resource.pop(key)
    resource["scopeSpans"] = scopes
    for scope in scopes if isinstance(scopes, list) else ():
        if not isinstance(scope, dict):
            continue
        for older in _LIBRARY:
            if older in scope:
                scope["scope"] = scope.pop(older)
        spans = scope.get("spans")
        for span in spans if isinstance(spans, list) else ():
            if isinstance(span, dict):
                links = span.get("links")
                for holder in (span, *(links if isinstance(links, list) else ())):
                    _write_hex(holder)


def _write_hex(holder: Any) -> None:
    """Write ids in hex that are base64, as protobuf's own JSON has them: their length distinguishes them."""
    for key in _IDS.keys() & holder.keys() if isinstance(holder, dict) else ():
        found, size = holder[key], _IDS[key]
        if isinstance(found, str) and len(found) == 4 * -(-size // 3):
            try:
                decoded = base64.b64decode(found, validate=True)
            except binascii.Error:
                continue
            holder[key] = decoded.hex() if len(decoded) == size else found


def _of_each(documents: list[Any]) -> Read:
    """Decode documents of one form, which stand in a list."""
    request, rejected, reason = ExportTraceServiceRequest(), 0, None
    for document in documents:
        found = read_document(document)
        if found is not None:
            request.MergeFrom(found.request)
            rejected, reason = rejected + found.rejected, reason or found.reason
    return Read(request, rejected, reason)


# The first that fits decides.
_FORMS: Final[tuple[tuple[Callable[[Any], bool], Callable[[Any], Read | None]], ...]] = (
    (lambda document: _resources(document) is not None, _otlp),
    (lambda document: _wrapper(document) is not None, lambda document: read_document(document[_wrapper(document)])),
    (lambda document: any(_has(key)(document) for key in _OTHER_SIGNALS), lambda _: None),
    (_has("spans"), jaeger_json.read),
    (_has("data"), jaeger_json.read),
    (_is_list_of(_has("spans")), jaeger_json.read),
    # A span as Jaeger keeps it in Elasticsearch; and the response of a search there.
    (_has("traceID", "spanID", "process"), lambda document: jaeger_json.read({"spans": [_of_index(document)]})),
    (_has("hits"), lambda document: _of_each(_hits(document))),
    (_is_list_of(lambda one: _resources(one) is not None or _wrapper(one) is not None), _of_each),
)


def _of_index(span: Json) -> Json:
    """Return a span out of an index, where tags may be fields of `tag`, with @ for each dot of a key."""
    process = span["process"]
    return {**_with_tags(span), "process": _with_tags(process) if isinstance(process, dict) else process}


def _with_tags(holder: Json) -> Json:
    fields, tags = holder.get("tag"), holder.get("tags") or []
    if not isinstance(fields, dict) or not isinstance(tags, list):
        return holder
    return {**holder, "tags": [*tags, *({"key": key.replace("@", "."), "value": fields[key]} for key in fields)]}


def _hits(document: Json) -> list[Any]:
    hits = document["hits"]
    found = hits.get("hits") if isinstance(hits, dict) else None
    if not isinstance(found, list):
        raise ValueError("its hits are no list")
    return found


# Forms that are recognised, and not read: how one says so.
_UNREAD: Final[tuple[tuple[Callable[[Any], bool], str], ...]] = (
    (_has("traceId", "id"), "a span of Zipkin's JSON; a Collector's zipkin receiver takes it"),
    (_has("context", "start_time"), "a span as OpenTelemetry's console exporter prints it, which is not OTLP"),
    (_has("trace_id", "span_id"), "a span as Elasticsearch keeps it (trace_id, span_id), which is not OTLP"),
    (_has("TraceId", "SpanId"), "a span as a Collector's exporter keeps it in Elasticsearch, which is not OTLP"),
    (_has("@timestamp", "trace"), "a document of Elastic APM, which is not OTLP"),
    (_has("traceId", "spanId"), "a span of OTLP outside of resourceSpans"),
    (_has("traceEvents"), "a trace of Chrome's"),
)


def _describe(document: Any) -> str:
    """Return what a document is that is not read."""
    first = document[0] if isinstance(document, list) and document else document
    if _is_list_of(lambda one: isinstance(one, list))(document):
        first = first[0] if first else first  # Zipkin's: a list of traces, each a list of spans
    name = next((name for is_of, name in _UNREAD if is_of(first)), None)
    if name is not None:
        return f"it is {name}"
    if not isinstance(document, dict):
        return f"it is {'a list of no spans' if isinstance(document, list) else 'no JSON object'}"
    keys = ", ".join(map(repr, list(document)[:_KEYS])) + (", ..." if len(document) > _KEYS else "")
    return f"it is an object without resourceSpans{f': its keys are {quote(keys)}' if keys else ''}"


# --- Files of spans, read message by message: OTLP JSON lines and protobuf, as the Collector's file exporter writes
# them.
#
# JSON may also be of the other forms that `documents` reads. Protobuf comes in three framings, known by their first
# bytes: one request (or several one after another, which is the same to protobuf), each behind its length in four bytes
# (the Collector), each behind its length as a varint.

JSON: Final = (".jsonl", ".json", ".ndjson")
PROTOBUF: Final = (".pb", ".binpb")
_FIRST_FIELD: Final = b"\x0a"  # how a request with spans begins


def read_file(path: Path, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
    """Yield the requests of a file; append to `cuts` what could not be read. Raise StoreError if nothing can."""
    return (message for message, _ in read_at(path, cuts))


def read_at(path: Path, cuts: list[str]) -> Iterator[tuple[ExportTraceServiceRequest, int]]:
    """Yield as `read`, each with how many bytes of the file there are up to its end."""
    try:
        with path.open("rb") as file:
            yield from _json(path, file, cuts) if path.suffix in JSON else _protobuf(path, file, cuts)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}\ncheck the path and its permissions") from None


def complete_lines(path: Path, offset: int) -> tuple[list[ExportTraceServiceRequest], int]:
    """Return the requests in the whole lines behind `offset`, and the offset behind these (0 if it shrank)."""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(offset if file.tell() >= offset else 0)
        start = file.tell()
        found = file.read()
    whole = found[: found.rfind(b"\n") + 1]
    requests = (_request(line) for line in whole.splitlines())
    return [request for request in requests if request is not None], start + len(whole)


def _request(line: bytes) -> ExportTraceServiceRequest | None:
    """Return the request on one line, or None if it holds none (`read` counts these)."""
    try:
        found = read_document(parse(line))
    except ValueError:
        return None
    return None if found is None else found.request


def _json(path: Path, file: BinaryIO, cuts: list[str]) -> Iterator[tuple[ExportTraceServiceRequest, int]]:
    """Yield the request on each line, or those that the whole file is."""
    bad: list[tuple[int, str]] = []
    odd: list[Read] = []
    good = 0
    number = behind = 0
    for number, line in enumerate(file, 1):
        behind += len(line)
        if not line.strip():
            continue
        try:
            found = read_document(parse(line))
        except ValueError as error:
            bad.append((number, "still being written, or cut off" if not line.endswith(b"\n") else str(error)))
            continue
        if found is None:
            continue
        good += 1
        odd += [found] if found.rejected else []
        yield found.request, behind
    if bad and not good:
        for found in _whole(path, file, bad[0]):
            odd += [found] if found.rejected else []
            yield found.request, behind
    elif bad:
        cuts.append(f"{len(bad)} of {number} lines of {path.name} are not OTLP JSON (line {bad[0][0]}: {bad[0][1]})")
    if odd:
        cuts.append(f"{sum(one.rejected for one in odd)} spans of {path.name} cannot be read ({odd[0].reason})")


def _whole(path: Path, file: BinaryIO, first: tuple[int, str]) -> Iterator[Read]:
    """Yield what the documents of a file hold that are not one on each line. Raise StoreError where one is of no form.

    `first`: the number of the first line that was not understood by itself, and why.
    """
    file.seek(0)
    try:
        values = list(parse_all(file.read()))
    except ValueError:
        raise _foreign(path, f"line {first[0]}: {first[1]}") from None
    try:
        yield from (found for value in values if (found := read_document(value)) is not None)
    except ValueError as error:
        raise _foreign(path, str(error)) from None


def _protobuf(path: Path, file: BinaryIO, cuts: list[str]) -> Iterator[tuple[ExportTraceServiceRequest, int]]:
    head = file.read(5)
    file.seek(0)
    if not head:
        return
    unreadable = Unreadable(cuts, f" of {path.name}")
    if head.startswith(_FIRST_FIELD):
        try:
            yield read(ExportTraceServiceRequest, file.read(), unreadable), file.tell()
        except DecodeError:
            raise _foreign(path, "its bytes are no request, or are cut off") from None
        return
    size_of = _four_bytes if head[4:5] == _FIRST_FIELD else _varint
    count = 0
    while (size := size_of(file)) is not None:
        # A broken length may ask for more than there is memory.
        content = file.read(size) if 0 <= size <= path.stat().st_size - file.tell() else b""
        try:
            content = content if len(content) == size else _FIRST_FIELD
            request = read(ExportTraceServiceRequest, content, unreadable)
        except DecodeError:
            if not count:
                raise _foreign(path, "its first message is no request, or is cut off") from None
            cuts.append(f"{path.name} is cut off or broken behind its message {count}")
            return
        count += 1
        yield request, file.tell()


def _four_bytes(file: BinaryIO) -> int | None:
    """Return the next length, None at the end of the file, -1 where it ends within."""
    found = file.read(4)
    return None if not found else int.from_bytes(found, "big") if len(found) == 4 else -1  # noqa: PLR2004


def _varint(file: BinaryIO) -> int | None:
    """Return the next length, None at the end of the file, -1 where it ends within or is no length."""
    size = shift = 0
    while shift < 32:  # noqa: PLR2004 -- no message is longer
        found = file.read(1)
        if not found:
            return -1 if shift else None
        size |= (found[0] & 0x7F) << shift
        if found[0] < 0x80:  # noqa: PLR2004
            return size
        shift += 7
    return -1


def _foreign(path: Path, wrong: str) -> StoreError:
    return StoreError(
        f"{path} holds no OTLP spans: {wrong[:160]}\n"
        f"readable are OTLP JSON and Jaeger's JSON ({' '.join(JSON)}), OTLP protobuf ({' '.join(PROTOBUF)}) and "
        "what `stagetrace export` writes"
    )


# --- Spans out of files: OTLP JSON lines and protobuf here, Parquet as `stagetrace export` writes it in `parquet.py`.

PARQUET: Final = ".parquet"
SUFFIXES: Final = (*JSON, *PROTOBUF, PARQUET)


def open_url(url: str) -> Reader:
    """Return a reader of `file:///PATH`: one file, or a folder of files of one kind."""
    host, slash, path = url.partition("://")[2].partition("/")
    if host or not slash:
        raise StoreError(f"cannot open store {url!r}: the path must be whole\nwrite file:///folder/spans.jsonl")
    return open_path(Path("/" + unquote(path)))


def open_path(path: Path) -> Reader:
    """Return a reader of one file or of a folder's. Raise StoreError if there is nothing to read."""
    if path.is_dir():
        paths = sorted(one for one in path.iterdir() if one.suffix in SUFFIXES and not one.name.startswith("."))
    else:
        paths = [path]
    if not path.exists():
        raise StoreError(f"there is no file {path}\ncheck the path")
    if not paths or any(one.suffix not in SUFFIXES for one in paths):
        raise StoreError(f"{path} is nothing that can be read\nreadable are {' '.join(SUFFIXES)}, or a folder of these")
    columnar = {one.suffix == PARQUET for one in paths}
    if columnar == {True, False}:
        raise StoreError(f"{path} holds Parquet beside other files\nname one of them")
    if columnar == {True}:
        from stagetrace.store.file.parquet import ParquetReader

        return ParquetReader(path, paths)
    return FileReader(path, paths)


class FileReader(MessageReader):
    """Reader of OTLP files."""

    def __init__(self, path: Path, paths: Sequence[Path]) -> None:
        """Read `paths`, which are `path` itself or lie in it."""
        super().__init__(str(path))
        self._paths = paths
        followed = {TAIL} if len(paths) == 1 and paths[0].suffix in JSON else set()
        self.capabilities = MessageReader.capabilities | followed

    def spans_after(self, cursor: int | None, *, entries: bool = False) -> tuple[list[SpanRow], int]:
        """Return the spans of lines behind the cursor, and the next cursor; the first is the file's end."""
        if cursor is None:
            return [], self._paths[0].stat().st_size
        requests, cursor = complete_lines(self._paths[0], cursor)
        spans = [one for request in requests for one in spans_of(request)]
        return [one.row() for one in spans if not entries or one.span.kind == one.span.SPAN_KIND_SERVER], cursor

    def messages(self, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the requests in the files, and report progress by bytes."""
        whole, before, count = sum(path.stat().st_size for path in self._paths), 0, 0
        for path in self._paths:
            for message, behind in read_at(path, cuts):
                count += 1
                self.progress(count, "messages", (before + behind) / max(1, whole))
                yield message
            before += path.stat().st_size

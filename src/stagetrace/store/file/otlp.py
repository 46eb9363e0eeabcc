"""Files of spans, read message by message: OTLP JSON lines and protobuf, as the Collector's file exporter writes them.

JSON may also be of the other forms that `documents` reads.
Protobuf comes in three framings, known by their first bytes: one request (or several one after another, which is
the same to protobuf), each behind its length in four bytes (the Collector), each behind its length as a varint.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stagetrace.errors import StoreError
from stagetrace.otlp.decode import salvage
from stagetrace.store.file import documents

if TYPE_CHECKING:
    from stagetrace.store.file.jaeger_json import Read

JSON: Final = (".jsonl", ".json", ".ndjson")
PROTOBUF: Final = (".pb", ".binpb")
_FIRST_FIELD: Final = b"\x0a"  # how a request with spans begins


def read(path: Path, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
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
        found = documents.read(documents.parse(line))
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
            found = documents.read(documents.parse(line))
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
        values = list(documents.parse_all(file.read()))
    except ValueError:
        raise _foreign(path, f"line {first[0]}: {first[1]}") from None
    try:
        yield from (found for value in values if (found := documents.read(value)) is not None)
    except ValueError as error:
        raise _foreign(path, str(error)) from None


def _protobuf(path: Path, file: BinaryIO, cuts: list[str]) -> Iterator[tuple[ExportTraceServiceRequest, int]]:
    head = file.read(5)
    file.seek(0)
    if not head:
        return
    unreadable = salvage.Unreadable(cuts, f" of {path.name}")
    if head.startswith(_FIRST_FIELD):
        try:
            yield salvage.read(ExportTraceServiceRequest, file.read(), unreadable), file.tell()
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
            request = salvage.read(ExportTraceServiceRequest, content, unreadable)
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

"""What a called service reports of itself with its response: `Server-Timing`, ORCA's load, an engine's own figures."""

from __future__ import annotations

import binascii
import functools
import json
import re
from base64 import b64decode
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.protocols import http_headers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MAX_LOAD_CHARACTERS: Final = 4_096

# --- ORCA: the load that a callee reports with a response, in `endpoint-load-metrics`, as text, JSON or protobuf.
#
# https://github.com/cncf/xds/blob/main/xds/data/orca/v3/orca_load_report.proto; vLLM and Triton send text or JSON, gRPC
# servers the trailing metadata `endpoint-load-metrics-bin`. It tells how busy the callee is, and no times.

MAX_VALUES: Final = 64
MOST: Final = 1e300
LOAD_HEADER: Final = "endpoint-load-metrics"
BINARY, JSON = f"{LOAD_HEADER}-bin", f"{LOAD_HEADER}-json"
LOAD_HEADERS: Final = (LOAD_HEADER, BINARY, JSON)
CPU, APPLICATION = "cpu_utilization", "application_utilization"
FIELDS: Final = {
    "cpu_utilization": 1,
    "mem_utilization": 2,
    "rps_fractional": 6,
    "eps": 7,
    "application_utilization": 9,
}
MAPS: Final = {"request_cost": 4, "utilization": 5, "named_metrics": 8}
_LOAD_NAME: Final = re.compile(r"[A-Za-z0-9_.\-/]{1,64}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,18})?(?:[eE][+\-]?[0-9]{1,3})?")


def load_in(name: str, value: str | bytes) -> dict[str, float]:
    """Return the values of one of HEADERS, those of maps with their map as prefix; empty where it cannot be read."""
    if len(value) > MAX_LOAD_CHARACTERS:
        return {}  # a part of it would be no report
    if name == BINARY:
        return _of_message(value if isinstance(value, bytes) else _decoded(value))
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if name == JSON:
        return _of_json(text)
    kind, _, rest = text.partition(" ")
    if kind == "BIN":
        return _of_message(_decoded(rest))
    return _of_json(rest) if kind == "JSON" else _of_text(rest if kind == "TEXT" else text)


def _of_text(text: str) -> dict[str, float]:
    """Read `cpu_utilization=0.3, named_metrics.waiting=4`, in which older servers write a colon."""
    found: dict[str, float] = {}
    for pair in text.split(",", MAX_VALUES)[:MAX_VALUES]:
        name, _, value = pair.replace(":", "=", 1).partition("=")
        if _NUMBER.fullmatch(value.strip()):
            _add(found, name.strip(), float(value))
    return found


def _of_json(text: str) -> dict[str, float]:
    try:
        report = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    found: dict[str, float] = {}
    for name, value in (report if isinstance(report, dict) else {}).items():
        known = _snake(name)
        if known in MAPS and isinstance(value, dict):
            for key, one in value.items():
                _add(found, f"{known}.{key}", one)
        else:
            _add(found, known, value)
    return found


def _snake(name: str) -> str:
    """Return the name of a field in the message's own spelling: in JSON `cpuUtilization` may stand."""
    return re.sub(r"(?<=[a-z])[A-Z]", lambda match: f"_{match[0].lower()}", name[:MAX_LOAD_CHARACTERS])


def _of_message(message: bytes) -> dict[str, float]:
    from google.protobuf.message import DecodeError

    report = _class()()
    try:
        report.ParseFromString(message)
    except DecodeError:
        return {}
    found: dict[str, float] = {}
    for name in FIELDS:
        if report.HasField(name):
            _add(found, name, getattr(report, name))
    for name in MAPS:
        for key, value in getattr(report, name).items():
            _add(found, f"{name}.{key}", value)
    return found


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text.strip() + "=" * (-len(text.strip()) % 4), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _add(found: dict[str, float], name: str, value: Any) -> None:
    """Add a value that is a number of a plausible name and size."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if len(found) < MAX_VALUES and is_number and _LOAD_NAME.fullmatch(name) and abs(value) < MOST:
        found[name] = float(value)


@functools.cache
def _class() -> Any:
    """Return the message's class, in a pool of its own: the service may have the class itself."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="orca_load_report.proto", package="orca", syntax="proto3")
    report = file.message_type.add(name="OrcaLoadReport")
    for number, (name, place) in enumerate(FIELDS.items()):
        report.oneof_decl.add(name=f"_{name}")
        report.field.add(
            name=name,
            number=place,
            type=kinds.TYPE_DOUBLE,
            label=kinds.LABEL_OPTIONAL,
            proto3_optional=True,
            oneof_index=number,
        )
    for name, place in MAPS.items():
        entry = report.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
        entry.field.add(name="value", number=2, type=kinds.TYPE_DOUBLE, label=kinds.LABEL_OPTIONAL)
        kind = f".orca.OrcaLoadReport.{entry.name}"
        report.field.add(name=name, number=place, type=kinds.TYPE_MESSAGE, label=kinds.LABEL_REPEATED, type_name=kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("orca.OrcaLoadReport"))


if TYPE_CHECKING:
    Pairs = Iterable[tuple[str | bytes, str | bytes]]


# --- the header Server-Timing


# --- What a called service reports of itself with its response, as attributes of the client span.
#
# Read are `Server-Timing`, ORCA's `endpoint-load-metrics`, headers of text-generation-inference, OpenAI and Envoy, the
# trailing metadata of an RPC, and bodies of language models (`gen_ai_response.py`). One source gives the times: the
# first that has any, a body before headers. A report is the callee's word: what cannot be is shown, and not used.
#
# The grammar of `Server-Timing`: https://www.w3.org/TR/server-timing/. Whatever a server sends, reading it takes
# bounded work and raises nothing.

MAX_CHARACTERS: Final = 4_096  # of a header, the rest is not read
MAX_METRICS: Final = 64
TOTAL, QUEUE, INFERENCE = "total", "queue", "inference"
TRANSFERS: Final = ("network.receive", "network.send")
EACH_ROUNDED_MS: Final = 0.001  # of each duration

_WORD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_NAME: Final = re.compile(rf"[ \t]*({_WORD})")
_METRIC: Final = re.compile(rf'(?:[^",]|{_QUOTED})*', re.DOTALL)
_PARAMETER: Final = re.compile(rf'[ \t]*;[ \t]*({_WORD})[ \t]*=[ \t]*({_QUOTED}|[^;" \t]*)[^;"]*', re.DOTALL)
_DURATION: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")


class Metric(NamedTuple):
    """One metric of the header."""

    name: str
    duration_ms: float | None  # None: it has none that is a number


class Times(NamedTuple):
    """What a callee reports of its time for one request, ms; None is unknown."""

    source: str
    queue_ms: float | None = None
    compute_ms: float | None = None
    total_ms: float | None = None
    transfer_ms: float = 0.0  # of the total: receiving the request, sending the response
    first_token_ms: float | None = None  # from the arrival of the request on
    is_whole: bool = False  # it is about the whole call; else about the time until the response's headers


def metrics_of(header: str) -> list[Metric]:
    """Return the metrics of a header, up to 64 in its first 4,096 characters; what is none is left out."""
    text, found, at = header[:MAX_CHARACTERS], list[Metric](), 0
    while at < len(text) and len(found) < MAX_METRICS:
        piece = _METRIC.match(text, at)
        end = len(text) if piece is None else piece.end()
        if end == len(text) < len(header) or (end < len(text) and text[end] != ","):
            break  # cut off; or a quote without its end
        metric = _metric(text[at:end])
        if metric is not None:
            found.append(metric)
        at = end + 1
    return found


def _metric(text: str) -> Metric | None:
    name = _NAME.match(text)
    if name is None:
        return None
    duration = next((value for key, value in _parameters(text, name.end()) if key.lower() == "dur"), "")
    is_number = _DURATION.fullmatch(duration) is not None
    return Metric(name[1], float(duration) if is_number else None)


def _parameters(text: str, at: int) -> Iterator[tuple[str, str]]:
    while (one := _PARAMETER.match(text, at)) is not None:
        yield one[1], one[2].strip('"')
        at = one.end()


def times_in(metrics: Sequence[Metric], source: str, *, is_whole: bool) -> Times | None:
    """Return what metrics tell by names that have one meaning: `queue`, `inference`, `total`; None if nothing.

    Metrics that add up to the total after them, as those of stagetrace do, are all of it: without a `queue` among them
    there was none. Where several servers have added theirs, the last total counts.
    """
    known = [(name, took) for name, took in metrics if took is not None]
    ends = [place for place, (name, _) in enumerate(known) if name == TOTAL]
    if not ends:
        return _some(known, None, source, is_whole=is_whole)
    last = ends[-1]
    total = known[last][1]
    parts = known[ends[-2] + 1 if len(ends) > 1 else 0 : last]
    whole = _adding_up(parts, total)
    if whole is None:
        return _some(parts, total, source, is_whole=is_whole)
    took = {name: sum(one for other, one in whole if other == name) for name, _ in whole}
    transfer = sum(took.get(name, 0.0) for name in TRANSFERS)
    return Times(source, took.get(QUEUE, 0.0), took.get(INFERENCE), total, transfer, is_whole=is_whole)


def _some(known: list[tuple[str, float]], total: float | None, source: str, *, is_whole: bool) -> Times | None:
    took = dict(known)
    queue, compute = took.get(QUEUE), took.get(INFERENCE)
    if queue is None and compute is None and total is None:
        return None
    return Times(source, queue, compute, total, is_whole=is_whole)


def _adding_up(parts: list[tuple[str, float]], total: float) -> list[tuple[str, float]] | None:
    """Return the last of the parts that add up to the total; None if they do not."""
    added = 0.0
    for count, (_, took) in enumerate(reversed(parts), 1):
        added += took
        if abs(added - total) <= EACH_ROUNDED_MS * (count + 1):
            return parts[len(parts) - count :]
    return None


# --- all that is reported


MAX_SHOWN: Final = 16
ROUNDING_MS: Final = 0.02  # of parts that were rounded one by one
AGE: Final = "age"  # a cache sends it: the report is about the request that filled the cache
# Of text-generation-inference and text-embeddings-inference, ms where this header is: others of these names are in s.
TGI, TGI_QUEUE, TGI_COMPUTE, TGI_TOTAL = "x-compute-type", "x-queue-time", "x-inference-time", "x-total-time"
# Headers that have the callee's whole time in ms: OpenAI's and Azure's own, then that of a proxy in front of it.
TOTALS: Final = ("openai-processing-ms", "x-envoy-upstream-service-time")
HEADER: Final = http_headers.HEADER
READ: Final = frozenset((HEADER, AGE, *LOAD_HEADERS, TGI, TGI_QUEUE, TGI_COMPUTE, TGI_TOTAL, *TOTALS))


class Reported:
    """What the callee reports of one call."""

    times: Times | None = None
    load: Mapping[str, float] = {}
    metrics: Sequence[tuple[str, float]] = ()  # of a Server-Timing that names other things than we know

    def __bool__(self) -> bool:
        return self.times is not None or bool(self.load) or bool(self.metrics)

    def attributes(self, until_response_ms: float, whole_ms: float) -> dict[str, Any]:
        """Return what the client span carries, of a call whose response began and ended after so many ms."""
        found: dict[str, Any] = {}
        times = self.times
        if times is not None:
            found[semconv.CALLEE_SOURCE] = times.source
            found |= {
                name: value
                for name, value in (
                    (semconv.CALLEE_QUEUE_MS, times.queue_ms),
                    (semconv.CALLEE_COMPUTE_MS, times.compute_ms),
                    (semconv.CALLEE_TOTAL_MS, times.total_ms),
                    (semconv.CALLEE_FIRST_TOKEN_MS, times.first_token_ms),
                )
                if value is not None
            }
            found |= _rest(times, whole_ms if times.is_whole else until_response_ms)
            if semconv.CALLEE_NETWORK_MS in found and not times.is_whole:
                found[semconv.CALLEE_RESPONSE_MS] = round(whole_ms - until_response_ms, 6)
        if self.metrics:
            found[semconv.CALLEE_SERVER_TIMING] = _shown(self.metrics)
        if self.load:
            found[semconv.CALLEE_LOAD] = _shown(self.load.items())
            for name, attribute in _LOADS:
                if name in self.load:
                    found[attribute] = self.load[name]
        return found


_LOADS: Final = (
    (CPU, semconv.CALLEE_CPU_UTILIZATION),
    (APPLICATION, semconv.CALLEE_APPLICATION_UTILIZATION),
)


def _rest(times: Times, call_ms: float) -> dict[str, Any]:
    """Return what is left of the callee's time, and of the call; or that the callee claims more than the call took."""
    known = (times.queue_ms or 0.0) + (times.compute_ms or 0.0) + times.transfer_ms
    most = call_ms if times.total_ms is None else min(times.total_ms + ROUNDING_MS, call_ms)
    if known > most or (times.total_ms or 0.0) > call_ms:
        return {semconv.CALLEE_IMPLAUSIBLE: True}
    if times.total_ms is None:
        return {}
    found = {semconv.CALLEE_NETWORK_MS: round(call_ms - times.total_ms + times.transfer_ms, 6)}
    if times.queue_ms is not None:
        found[semconv.CALLEE_OTHER_MS] = round(max(times.total_ms - known, 0.0), 6)
    return found


def _shown(values: Iterable[tuple[str, float]]) -> str:
    some = list(values)
    more = f", {len(some) - MAX_SHOWN} more" if len(some) > MAX_SHOWN else ""
    return ", ".join(f"{name}={value:.15g}" for name, value in some[:MAX_SHOWN]) + more


def read_headers(headers: Pairs, *, is_whole: bool) -> Reported | None:
    """Return what the headers of a response report, or `is_whole`: trailing metadata, sent at its end; None if nothing.

    Of several headers of one name the values are one list.
    """
    found: dict[str, str | bytes] = {}
    for name, value in headers:
        key = (name.decode("latin-1") if isinstance(name, bytes) else name).lower()
        if key in READ:
            found[key] = value if key not in found or key in LOAD_HEADERS else _joined(found[key], value)
    if not found or AGE in found:
        return None
    reported = Reported()
    if HEADER in found:
        metrics = metrics_of(_text(found[HEADER]))
        if any(name == http_headers.ASKED for name, _ in metrics):
            http_headers.has_received = True
        reported.times = times_in(metrics, HEADER, is_whole=is_whole)
        known = reported.times is not None and reported.times.queue_ms is not None
        reported.metrics = [] if known else [(name, took) for name, took in metrics if took is not None]
    if reported.times is None:
        reported.times = _of_others(found, is_whole=is_whole)
    for name in LOAD_HEADERS:
        if name in found and not reported.load:
            reported.load = load_in(name, found[name])
    return reported or None


def with_times(reported: Reported | None, times: Times) -> Reported:
    """Return what was reported until now, with these times."""
    reported = reported or Reported()
    reported.times = times
    return reported


def _of_others(found: Mapping[str, str | bytes], *, is_whole: bool) -> Times | None:
    if TGI in found:
        queue, compute, total = (_number(found.get(name)) for name in (TGI_QUEUE, TGI_COMPUTE, TGI_TOTAL))
        if queue is not None:
            return Times("text-generation-inference", queue, compute, total, is_whole=is_whole)
    for name in TOTALS:
        total = _number(found.get(name))
        if total is not None:
            return Times(name, total_ms=total, is_whole=is_whole)
    return None


def _number(value: str | bytes | None) -> float | None:
    text = "" if value is None else _text(value).strip()
    return float(text) if text.isascii() and text.replace(".", "", 1).isdigit() and len(text) < MAX_SHOWN else None


def _text(value: str | bytes) -> str:
    """Return a value as text, one character more than is read at most: whether it was cut off is seen by that."""
    value = value[: MAX_CHARACTERS + 1]
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _joined(one: str | bytes, other: str | bytes) -> str:
    """Return two values of one header as one list."""
    return f"{_text(one)}, {_text(other)}"

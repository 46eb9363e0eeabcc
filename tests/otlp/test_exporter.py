"""What a receiver answers is understood as the OTLP specification has it, over the official exporters."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from email.utils import formatdate
from typing import TYPE_CHECKING, Any

import pytest
from grpc import StatusCode
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult

from otlp.exporters import PROTOCOLS, official, request, retry_info, watched
from otlp.receiver import PROTOBUF, Receiver, Reply, partial_success
from stagetrace.instrumentation.opentelemetry import exporter as otlp_exporter
from stagetrace.otlp.export.exporter import CountingExporter
from stagetrace.otlp.export.response import Answer
from stagetrace.otlp.export.response_tap import watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace.export import SpanExporter

pytestmark = pytest.mark.usefixtures("unwatched_after")


def sent(protocol: str, receiver: Receiver, reply: Reply) -> Answer:
    """Send two spans, which get that reply and no other; the exporter must ask once."""
    receiver.script.append(reply)
    receiver.always = Reply(code=StatusCode.INTERNAL, status=500, details="asked again", takes=False)
    exporter = watched(protocol, receiver)
    answer = exporter.send(request("a", "b"), 2)
    exporter.shutdown()
    assert receiver.asked == 1
    return answer


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_official_exporters_can_be_watched(protocol: str) -> None:
    """Fails where a new release of theirs is built another way; what happens then is tested below."""
    exporter = official(protocol, "http://127.0.0.1:1")
    assert watch(exporter) is not None
    exporter.shutdown()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_arrive_as_they_are(protocol: str, receiver: Receiver) -> None:
    data = request("a", "b")
    exporter = watched(protocol, receiver)
    assert exporter.send(data, 2) == Answer(delivered=True)
    assert receiver.requests == [data]
    exporter.shutdown()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_spans_of_others_still_go_through_a_watched_exporter(protocol: str, receiver: Receiver) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    span: Any = provider.get_tracer("t").start_span("theirs")
    span.end()
    exporter = watched(protocol, receiver)
    assert exporter.export([span]) is SpanExportResult.SUCCESS
    assert receiver.names() == ["theirs"]
    exporter.shutdown()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_compression_stays_the_exporters(protocol: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    data = request(*("the same name again" for _ in range(100)))
    exporter = watched(protocol, receiver)
    assert exporter.send(data, 100).delivered
    if protocol == "http":
        assert receiver.headers[0]["content-encoding"] == "gzip"
        assert len(receiver.requests[0]) < len(data) / 2
    else:
        assert receiver.requests == [data]
    exporter.shutdown()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_partial_success_is_seen(protocol: str, receiver: Receiver) -> None:
    reply = Reply(body=partial_success(1, "one has no name"))
    assert sent(protocol, receiver, reply) == Answer(delivered=True, rejected=1, reason="one has no name")


def test_partial_success_in_json_is_seen(receiver: Receiver) -> None:
    body = b'{"partialSuccess": {"rejectedSpans": "1", "errorMessage": "one has no name"}}'
    reply = Reply(body=body, headers={"content-type": "application/json; charset=utf-8"})
    assert sent("http", receiver, reply) == Answer(delivered=True, rejected=1, reason="one has no name")


RETRYABLE = {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
_NOT_SENT = ("OK",)


@pytest.mark.parametrize(
    "code", [code for code in StatusCode if code.name not in _NOT_SENT], ids=lambda code: code.name
)
def test_grpc_codes_are_retried_as_the_specification_says(code: StatusCode, receiver: Receiver) -> None:
    answer = sent("grpc", receiver, Reply(code=code, details="not now", takes=False))
    misdirected = code.name in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED")
    again = code.name in RETRYABLE
    assert answer == Answer(delivered=False, again=again, misdirected=misdirected, reason=f"{code.name}: not now")


@pytest.mark.parametrize("form", ["details", "alone"])
@pytest.mark.parametrize("code", [StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE])
def test_retry_info_says_when(code: StatusCode, form: str, receiver: Receiver) -> None:
    """In the details of the status, as gRPC has it, and as a trailer of its own, as the official exporter wants it."""
    answer = sent("grpc", receiver, Reply(code=code, trailers=retry_info(2.5, form), takes=False))
    assert (answer.again, answer.wait_s) == (True, 2.5)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 500, 501, 301, 302, 307])
def test_http_statuses_that_are_final(status: int, receiver: Receiver) -> None:
    answer = sent("http", receiver, Reply(status=status, takes=False))
    assert (answer.delivered, answer.again, answer.misdirected) == (False, False, status in (401, 403, 404))
    assert answer.reason.startswith(f"HTTP {status}")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(
    ("retry_after", "wait_s"), [(None, 0), ("7", 7), ("soon", 0), ("-3", 0), ("inf", 0), ("9e9", 600)]
)
def test_http_statuses_that_are_retried(
    status: int, retry_after: str | None, wait_s: float, receiver: Receiver
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    answer = sent("http", receiver, Reply(status=status, headers=headers, takes=False))
    assert (answer.delivered, answer.again, answer.wait_s) == (False, True, wait_s)


def test_a_date_in_retry_after(receiver: Receiver) -> None:
    headers = {"Retry-After": formatdate(time.time() + 300, usegmt=True)}
    assert 200 < sent("http", receiver, Reply(status=503, headers=headers, takes=False)).wait_s <= 300


@pytest.mark.parametrize(
    ("reply", "delivered"),
    [
        (Reply(headers={"content-type": "text/html"}, body=b"<h1>Welcome to nginx!</h1>"), False),
        (Reply(headers={}, body=b""), True),
        (Reply(headers={"content-type": "text/plain"}, body=b"ok"), True),
        (Reply(headers={"content-type": "application/json"}, body=b"[nonsense"), True),
        (Reply(headers=PROTOBUF, body=b"\xff\xff\xff"), True),
        (Reply(status=202), True),
    ],
)
def test_http_nonsense_with_a_good_status(reply: Reply, delivered: bool, receiver: Receiver) -> None:
    """A status of success is believed, but not that of a page: a proxy or a captive portal took nothing."""
    answer = sent("http", receiver, reply)
    assert (answer.delivered, answer.again) == (delivered, False)


def test_grpc_nonsense_with_a_good_status(receiver: Receiver) -> None:
    answer = sent("grpc", receiver, Reply(body=b"\xff\xff\xff"))
    assert answer == Answer(delivered=False, reason="it answered OK with something that is no OTLP")


def test_a_reset_connection_is_tried_again_at_once_and_then_later(receiver: Receiver) -> None:
    """Once at once, as it may have been an idle connection that the receiver had closed."""
    exporter = watched("http", receiver)
    receiver.script.extend([Reply(reset=True, takes=False)])
    assert exporter.send(request("a"), 1).delivered
    receiver.script.extend([Reply(reset=True, takes=False)] * 2)
    answer = exporter.send(request("a"), 1)
    assert (answer.delivered, answer.again) == (False, True)
    assert "ConnectionError" in answer.reason
    exporter.shutdown()


@contextmanager
def _server(answer: bytes) -> Iterator[str]:
    """Accept connections and say `answer`, or nothing at all."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    connections.append(connection)
                    if answer:
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in connections:
            connection.close()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("answer", [b"220 mail.example ESMTP\r\n" * 10, b""], ids=["rubbish", "black hole"])
def test_what_is_no_receiver_at_all_has_taken_nothing(protocol: str, answer: bytes) -> None:
    with _server(answer) as endpoint:
        exporter = watched(protocol, endpoint, timeout=0.5)
        result = exporter.send(request("a"), 1)
        exporter.shutdown()
    assert (result.delivered, result.again) == (False, True)
    assert result.reason


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nobody_there(protocol: str) -> None:
    exporter = watched(protocol, "http://127.0.0.1:1", timeout=2)
    answer = exporter.send(request("a"), 1)
    exporter.shutdown()
    assert (answer.delivered, answer.again) == (False, True)
    after_the_end = exporter.send(request("a"), 1)
    assert (after_the_end.delivered, after_the_end.again) == (False, True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_receiver_that_comes_back_is_reached(protocol: str, receiver: Receiver) -> None:
    exporter = watched(protocol, receiver, timeout=2)
    assert exporter.send(request("a"), 1).delivered
    receiver.stop()
    assert exporter.send(request("b"), 1).again
    assert exporter.send(request("b"), 1).again
    receiver.start()
    deadline = time.monotonic() + 60
    while not exporter.send(request("b"), 1).delivered:
        assert time.monotonic() < deadline
    assert receiver.names() == ["a", "b"]
    exporter.shutdown()


# A release that is built another way.


@pytest.mark.parametrize(
    ("protocol", "part"), [("grpc", "_stub"), ("grpc", "_retryable_error_codes"), ("http", "_client._transport")]
)
def test_an_exporter_that_is_built_another_way_is_left_as_it_is(protocol: str, part: str, receiver: Receiver) -> None:
    exporter: Any = official(protocol, receiver, timeout=1)
    owner, _, name = part.rpartition(".")
    holder = getattr(exporter, owner) if owner else exporter
    kept = getattr(holder, name)
    delattr(holder, name)
    before = dict(vars(exporter))
    counting = CountingExporter(exporter, "there")
    counting.watch()
    assert counting._watch is None
    assert vars(exporter) == before
    setattr(holder, name, kept)
    exporter.shutdown()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unwatched_its_own_retries_and_its_log_tell(protocol: str, receiver: Receiver) -> None:
    exporter = CountingExporter(official(protocol, receiver, timeout=0.7), "there")
    otlp_exporter.patch_trace_exporter(sys.modules[type(exporter._exporter).__module__])
    assert exporter.send(request("a"), 1) == Answer(delivered=True)
    receiver.always = Reply(code=StatusCode.UNAVAILABLE, status=503, takes=False)
    answer = exporter.send(request("a"), 1)
    assert (answer.delivered, answer.again) == (False, True)
    receiver.always = Reply(code=StatusCode.INVALID_ARGUMENT, status=400, takes=False)
    answer = exporter.send(request("a"), 1)
    assert (answer.delivered, answer.again) == (False, False)
    exporter.shutdown()


# When it is made.


def test_it_is_made_as_the_first_batch_is_sent_and_once(receiver: Receiver) -> None:
    made: list[SpanExporter] = []

    def make() -> SpanExporter:
        made.append(official("grpc", receiver))
        return made[-1]

    exporter = CountingExporter(None, "there", make)
    exporter.watch()
    assert exporter.force_flush()
    assert not made
    threads = [threading.Thread(target=exporter.load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert exporter.send(request("a"), 1).delivered
    assert exporter._watch is not None
    assert len(made) == 1
    exporter.begin_again()
    assert exporter.send(request("b"), 1).delivered
    assert len(made) == 2
    for one in made:
        one.shutdown()
    CountingExporter(None, "there", make).shutdown()
    assert receiver.names() == ["a", "b"]


def test_one_that_cannot_be_made_takes_nothing_and_is_tried_once() -> None:
    asked = []

    def make() -> SpanExporter:
        asked.append(1)
        raise ImportError("no module named grpc")

    exporter = CountingExporter(None, "there", make)
    for _ in range(3):
        answer = exporter.send(request("a"), 1)
        assert (answer.delivered, answer.again, answer.misdirected) == (False, False, True)  # a spool keeps them
        assert answer.reason == "the exporter cannot be loaded: ImportError: no module named grpc"
    assert len(asked) == 1


ENDS_AT_ONCE = """
import sys
from opentelemetry import trace
from stagetrace.runtime.runtime import runtime
runtime.prepare_now()
with trace.get_tracer("t").start_as_current_span("only"):
    pass
print("opentelemetry.exporter.otlp.proto" in sys.modules, "grpc" in sys.modules)
"""


@pytest.mark.parametrize(("protocol", "name"), [("grpc", "grpc"), ("http", "http/protobuf")])
@pytest.mark.parametrize("way", ["lazily", "at the start"])
def test_a_process_that_ends_at_once_has_loaded_it_in_time(
    protocol: str, name: str, way: str, receiver: Receiver
) -> None:
    """Where the interpreter does not say when it begins to end, it is loaded at the start."""
    first = "import threading\ndel threading._register_atexit\n" if way == "at the start" else ""
    late = "import concurrent.futures.thread\n"  # which registers with it
    env = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": getattr(receiver, protocol)}
    env |= {"OTEL_EXPORTER_OTLP_PROTOCOL": name, "STAGETRACE_STATUS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", late + first + ENDS_AT_ONCE],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    loaded = way != "lazily"
    assert done.stdout.split() == [str(loaded), str(loaded and protocol == "grpc")]
    assert receiver.names() == ["only"]
    assert "cannot" not in done.stderr

"""One request over gRPC or HTTP: what the response of a receiver means, by the OTLP specification."""

from __future__ import annotations

import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grpc import StatusCode
from opentelemetry.context import get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation

from at_once import at_once
from otlp.clients import PROTOCOLS, client, request, retry_info
from otlp.receiver import PROTOBUF, Receiver, Reply, partial_success, run_no_receiver
from otlp.sending import put
from services import run_python
from stagetrace import settings
from stagetrace.otlp.export import transport
from stagetrace.otlp.export.batch_processor import otlp_processor
from stagetrace.otlp.export.client import ExportClient
from stagetrace.otlp.export.response import Outcome

if TYPE_CHECKING:
    from stagetrace.otlp.export.transport import Transport


def sent(protocol: str, receiver: Receiver, reply: Reply) -> Outcome:
    """Send two spans, which get that reply and no other; the client must ask once."""
    receiver.script.append(reply)
    receiver.always = Reply(code=StatusCode.INTERNAL, status=500, details="asked again", takes=False)
    made = client(protocol, receiver)
    outcome = made.send(request("a", "b"))
    made.shutdown()
    assert receiver.asked == 1
    return outcome


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bytes_arrive_as_they_are(protocol: str, receiver: Receiver) -> None:
    data = request("a", "b")
    made = client(protocol, receiver)
    assert made.send(data) == Outcome(delivered=True)
    assert receiver.requests == [data]
    made.shutdown()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_requests_are_compressed_where_a_variable_asks_for_it(
    protocol: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    data = request(*("the same name again" for _ in range(100)))
    made = client(protocol, receiver)
    assert made.send(data).delivered
    if protocol == "http":
        assert receiver.headers[0]["content-encoding"] == "gzip"
        assert len(receiver.requests[0]) < len(data) / 2
    else:
        assert receiver.requests == [data]
    made.shutdown()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_partial_success_is_seen(protocol: str, receiver: Receiver) -> None:
    reply = Reply(body=partial_success(1, "one has no name"))
    assert sent(protocol, receiver, reply) == Outcome(delivered=True, rejected=1, reason="one has no name")


def test_partial_success_in_json_is_seen(receiver: Receiver) -> None:
    body = b'{"partialSuccess": {"rejectedSpans": "1", "errorMessage": "one has no name"}}'
    reply = Reply(body=body, headers={"content-type": "application/json; charset=utf-8"})
    assert sent("http", receiver, reply) == Outcome(delivered=True, rejected=1, reason="one has no name")


RETRYABLE = {"CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS"}
_NOT_SENT = ("OK",)


@pytest.mark.parametrize(
    "code", [code for code in StatusCode if code.name not in _NOT_SENT], ids=lambda code: code.name
)
def test_grpc_codes_are_retried_as_the_specification_says(code: StatusCode, receiver: Receiver) -> None:
    outcome = sent("grpc", receiver, Reply(code=code, details="not now", takes=False))
    misdirected = code.name in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED")
    again = code.name in RETRYABLE
    assert outcome == Outcome(delivered=False, retryable=again, misdirected=misdirected, reason=f"{code.name}: not now")


@pytest.mark.parametrize("form", ["details", "alone"])
@pytest.mark.parametrize("code", [StatusCode.RESOURCE_EXHAUSTED, StatusCode.UNAVAILABLE])
def test_retry_info_says_when(code: StatusCode, form: str, receiver: Receiver) -> None:
    """In the details of the status, as gRPC has it, and as a trailer of its own, as the official exporter reads it."""
    outcome = sent("grpc", receiver, Reply(code=code, trailers=retry_info(2.5, form), takes=False))
    assert (outcome.retryable, outcome.wait_s) == (True, 2.5)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 500, 501, 301, 302, 307])
def test_http_statuses_that_are_final(status: int, receiver: Receiver) -> None:
    outcome = sent("http", receiver, Reply(status=status, takes=False))
    assert (outcome.delivered, outcome.retryable, outcome.misdirected) == (False, False, status in (401, 403, 404))
    assert outcome.reason.startswith(f"HTTP {status}")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
@pytest.mark.parametrize(
    ("retry_after", "wait_s"), [(None, 0), ("7", 7), ("soon", 0), ("-3", 0), ("inf", 0), ("9e9", 600)]
)
def test_http_statuses_that_are_retried(
    status: int, retry_after: str | None, wait_s: float, receiver: Receiver
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    outcome = sent("http", receiver, Reply(status=status, headers=headers, takes=False))
    assert (outcome.delivered, outcome.retryable, outcome.wait_s) == (False, True, wait_s)


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
    outcome = sent("http", receiver, reply)
    assert (outcome.delivered, outcome.retryable) == (delivered, False)


def test_grpc_nonsense_with_a_good_status(receiver: Receiver) -> None:
    outcome = sent("grpc", receiver, Reply(body=b"\xff\xff\xff"))
    assert outcome == Outcome(delivered=False, reason="it responded OK with something that is no OTLP")


def test_a_reset_connection_is_tried_again_at_once_and_then_later(receiver: Receiver) -> None:
    """Once at once, as it may have been an idle connection that the receiver had closed."""
    made = client("http", receiver)
    receiver.script.extend([Reply(reset=True, takes=False)])
    assert made.send(request("a")).delivered
    receiver.script.extend([Reply(reset=True, takes=False)] * 2)
    outcome = made.send(request("a"))
    assert (outcome.delivered, outcome.retryable) == (False, True)
    assert outcome.reason == "RemoteDisconnected: Remote end closed connection without response"
    made.shutdown()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("first", [b"220 mail.example ESMTP\r\n" * 10, b""], ids=["rubbish", "black hole"])
def test_what_is_no_receiver_at_all_has_taken_nothing(protocol: str, first: bytes) -> None:
    with run_no_receiver(first) as endpoint:
        made = client(protocol, endpoint, timeout=0.5)
        result = made.send(request("a"))
        made.shutdown()
    assert (result.delivered, result.retryable) == (False, True)
    assert result.reason


@pytest.mark.parametrize(
    ("protocol", "spoken", "remedy"),
    [
        ("grpc", "http", "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
        ("http", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
    ],
)
def test_the_port_of_the_other_protocol_is_named_with_the_variable(
    protocol: str, spoken: str, remedy: str, receiver: Receiver
) -> None:
    made = client(protocol, receiver.http if spoken == "http" else receiver.grpc)
    outcome = made.send(request("a"))
    made.shutdown()
    assert (outcome.delivered, outcome.retryable) == (False, True)
    assert f"{'HTTP' if spoken == 'http' else 'gRPC'} is spoken there" in outcome.reason
    assert remedy in outcome.remedy


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_nobody_there(protocol: str) -> None:
    made = client(protocol, "http://127.0.0.1:1", timeout=2)
    outcome = made.send(request("a"))
    made.shutdown()
    assert (outcome.delivered, outcome.retryable) == (False, True)
    after_the_end = made.send(request("a"))
    assert (after_the_end.delivered, after_the_end.retryable) == (False, True)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_receiver_that_comes_back_is_reached(protocol: str, receiver: Receiver) -> None:
    made = client(protocol, receiver, timeout=2)
    assert made.send(request("a")).delivered
    receiver.stop()
    assert made.send(request("b")).retryable
    assert made.send(request("b")).retryable
    receiver.start()
    deadline = time.monotonic() + 60
    while not made.send(request("b")).delivered:
        assert time.monotonic() < deadline
    assert receiver.names() == ["a", "b"]
    made.shutdown()


class _Seen:
    """A transport that keeps the context in which it was opened, and that of each request."""

    def __init__(self) -> None:
        self.contexts = [dict(get_current())]

    def send(self, _request: bytes) -> Outcome:
        self.contexts.append(dict(get_current()))
        return Outcome(delivered=True)

    def close(self) -> None:
        pass


def test_no_instrumentation_records_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where the service imports OpenTelemetry after the first batch; a service without it stays so."""
    with suppress_instrumentation():
        theirs = dict(get_current())
    assert theirs
    seen: list[_Seen] = []

    def open_one() -> _Seen:
        seen.append(_Seen())
        return seen[-1]

    made = ExportClient(open_one, "there")
    assert made.send(b"").delivered
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "opentelemetry.context")
        assert made.send(b"").delivered
        assert "opentelemetry.context" not in sys.modules
    assert made.send(b"").delivered
    assert [one.contexts for one in seen] == [[theirs, theirs, {}, theirs]]
    assert not get_current()


# Whether spans go by gRPC or by HTTP.


def test_without_grpcio_http_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen() -> tuple[list[str], str]:
        return settings.exporters("TRACES", "otlp"), settings.endpoint()

    for name in ("", "TRACES_"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}PROTOCOL", raising=False)
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}ENDPOINT", raising=False)
    assert chosen() == (["otlp_proto_grpc"], "http://localhost:4317")
    monkeypatch.setitem(sys.modules, "grpc", None)  # as where it is not installed
    assert chosen() == (["otlp_proto_http"], "http://localhost:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert chosen() == (["otlp_proto_grpc"], "http://localhost:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    assert chosen() == (["otlp_proto_http"], "http://localhost:4318")


def test_a_folder_of_protos_is_no_grpcio(tmp_path: Path) -> None:
    """Python takes a folder without `__init__.py` for a package."""
    (tmp_path / "grpc").mkdir()
    source = str(Path(transport.__file__).parents[3])
    code = "from stagetrace import settings; print(settings.has_grpc(), settings.exporters('TRACES', 'otlp'))"
    done = run_python("-S", "-c", code, PYTHONPATH=f"{source}:{tmp_path}")
    assert done.stdout == "False ['otlp_proto_http']\n", done.stderr


def test_grpc_without_grpcio_names_what_fixes_it(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.grpc)
    made = otlp_processor("otlp_proto_grpc", "there")
    put(made, "a")
    made.shutdown()
    reason = "(the exporter cannot be loaded: ImportError: OTLP over gRPC needs grpcio, which cannot be imported ("
    (line,) = [line for line in capfd.readouterr().err.splitlines() if reason in line]
    assert "): `pip install grpcio`, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf)" in line


# When the transport is opened.


def test_it_is_opened_when_the_first_batch_is_sent_and_once(receiver: Receiver) -> None:
    opened: list[Transport] = []

    def open_one() -> Transport:
        opened.append(client("grpc", receiver)._transport)  # type: ignore[arg-type]
        return opened[-1]

    made = ExportClient(open_one, "there")
    assert not opened
    at_once(lambda _: made.load(), range(8))
    assert made.send(request("a")).delivered
    assert len(opened) == 1
    made.begin_again()
    assert made.send(request("b")).delivered
    assert len(opened) == 2
    for one in opened:
        one.close()
    ExportClient(open_one, "there").shutdown()
    assert receiver.names() == ["a", "b"]


def test_one_that_cannot_be_opened_sends_nothing_and_is_tried_once() -> None:
    asked = []

    def open_one() -> Transport:
        asked.append(1)
        raise ImportError("no module named grpc")

    made = ExportClient(open_one, "there")
    for _ in range(3):
        outcome = made.send(request("a"))
        assert (outcome.delivered, outcome.retryable, outcome.misdirected) == (False, False, True)  # a spool keeps them
        assert outcome.reason == "the exporter cannot be loaded: ImportError: no module named grpc"
    assert len(asked) == 1


ENDS_AT_ONCE = """
import sys
if "no grpcio" in sys.argv:
    sys.modules["grpc"] = None
from opentelemetry import trace
from stagetrace.runtime.runtime import runtime
runtime.prepare_now()
with trace.get_tracer("t").start_as_current_span("only"):
    pass
print("stagetrace.otlp.export.transport" in sys.modules, sys.modules.get("grpc") is not None)
"""


@pytest.mark.parametrize(("protocol", "name"), [("grpc", "grpc"), ("http", "http/protobuf")])
def test_a_process_that_ends_at_once_loads_it_then(protocol: str, name: str, receiver: Receiver) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint(protocol), "OTEL_EXPORTER_OTLP_PROTOCOL": name}
    done = run_python("-c", ENDS_AT_ONCE, STAGETRACE_STATUS="0", **env)
    assert done.stdout.split() == ["False", "False"]
    assert receiver.names() == ["only"]
    assert "cannot" not in done.stderr


def test_a_process_without_grpcio_sends_by_http_and_logs_that_once(receiver: Receiver) -> None:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http, "STAGETRACE_SLA": "* within 1s"}
    done = run_python("-c", ENDS_AT_ONCE, "no grpcio", STAGETRACE_STATUS="0", **env)
    assert receiver.names() == ["only"]
    assert done.stderr.count("grpcio is not installed") == 1
    assert f"spans go over HTTP to {receiver.http}/v1/traces.\n" in done.stderr

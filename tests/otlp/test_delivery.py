"""From the processor to a receiver, as the variables say: each span arrives once, or is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from grpc import StatusCode
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from otlp.clients import PROTOCOLS, client, request, retry_info
from otlp.receiver import Receiver, Reply, partial_success, run_receiver
from stagetrace import guard
from stagetrace.otlp.export import batch_processor
from stagetrace.otlp.export.delivery_log import DeliveryLog

if TYPE_CHECKING:
    from pathlib import Path

    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor

pytestmark = pytest.mark.usefixtures("no_processors")


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


def processor_to(protocol: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> EncodingSpanProcessor:
    endpoint = receiver.endpoint(protocol)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    return batch_processor.otlp_processor(f"otlp_proto_{protocol}", f"otlp {endpoint}")


def record(made: EncodingSpanProcessor, *span_names: str) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(made)  # type: ignore[arg-type]  # it has the methods of one
    for name in span_names:
        provider.get_tracer("t").start_span(name).end()


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_refused_for_a_while_arrives_once(
    protocol: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    refusal = Reply(
        code=StatusCode.RESOURCE_EXHAUSTED,
        trailers=retry_info(0.1, "details"),
        status=429,
        headers={"Retry-After": "0.1"},
        takes=False,
    )
    receiver.script.extend([refusal] * 2)
    made = processor_to(protocol, receiver, monkeypatch)
    record(made, *map(str, range(100)))
    receiver.wait_for(lambda r: len(r.spans()) >= 100)
    record(made, "after")
    made.shutdown()
    assert sorted(receiver.names()) == sorted([*map(str, range(100)), "after"])
    counts = made.counts()
    assert {outcome: spans for outcome, spans in counts.items() if spans} == {"received": 101, "delivered": 101}
    logged = capfd.readouterr().err
    assert logged.count("cannot deliver spans to") == 1
    assert logged.count("delivering to") == 1


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_partial_success_is_counted_logged_and_not_sent_again(
    protocol: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.always = Reply(body=partial_success(1, "one has no name"))
    made = processor_to(protocol, receiver, monkeypatch)
    record(made, "a", "b", "c")
    made.shutdown()
    counts = made.counts()
    assert counts["rejected"] == receiver.asked
    assert counts["delivered"] + counts["rejected"] == 3
    assert sorted(receiver.names()) == ["a", "b", "c"]
    assert capfd.readouterr().err.count("rejected spans of an otherwise good batch (one has no name)") == 1


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("refusal", "remedy"),
    [
        (Reply(code=StatusCode.UNAUTHENTICATED, status=401, takes=False), "_HEADERS or _CERTIFICATE to what can be"),
        (Reply(code=StatusCode.INVALID_ARGUMENT, status=400, takes=False), "The receiver's log may say why"),
    ],
)
def test_each_refusal_has_its_remedy_and_the_end_reports_what_was_lost_since(
    protocol: str,
    refusal: Reply,
    remedy: str,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    receiver.always = refusal
    made = processor_to(protocol, receiver, monkeypatch)
    for name in ("a", "b", "c"):
        record(made, name)
        assert made.force_flush()
    made.shutdown()
    logged = capfd.readouterr().err
    assert logged.count("cannot deliver spans to") == logged.count("1 lost so far") == logged.count(remedy) == 1
    assert logged.count("3 spans were lost in all") == 1


@pytest.mark.usefixtures("delays")
def test_a_log_that_fails_holds_up_no_delivery(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: DeliveryLog) -> str:
        raise RuntimeError("the numbers are broken")

    monkeypatch.setattr(DeliveryLog, "_numbers", fails)
    monkeypatch.setattr(guard, "failures", {})
    receiver.script.append(Reply(code=StatusCode.UNAVAILABLE, takes=False))
    made = processor_to("grpc", receiver, monkeypatch)
    record(made, "a")
    receiver.wait_for(lambda r: r.names() == ["a"])
    made.shutdown()
    assert made.counts()["delivered"] == 1
    assert guard.failures == {
        "stagetrace.otlp.export.delivery_log.DeliveryLog.problem": 1,
        "stagetrace.otlp.export.delivery_log.DeliveryLog.recovered": 1,
    }


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_refused_for_good_is_counted_and_does_not_hold_up_the_rest(
    protocol: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.script.append(Reply(code=StatusCode.INVALID_ARGUMENT, status=400, takes=False))
    made = processor_to(protocol, receiver, monkeypatch)
    record(made, "bad")
    assert made.force_flush()
    record(made, "good")
    made.shutdown()
    assert receiver.names() == ["good"]
    assert {k: v for k, v in made.counts().items() if v} == {"received": 2, "refused": 1, "delivered": 1}


@pytest.mark.usefixtures("delays")
def test_the_counts_are_a_metric(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    meters = MeterProvider([reader], shutdown_on_exit=False)
    batch_processor.offer_counts(meters.get_meter("stagetrace"), Observation)
    receiver.script.append(Reply(code=StatusCode.INVALID_ARGUMENT, takes=False))
    made = processor_to("grpc", receiver, monkeypatch)
    record(made, "bad")
    made.force_flush()
    record(made, "good", "too")
    made.force_flush()
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    points: Any = metric.data.data_points
    assert metric.name == "stagetrace.spans"
    assert {point.attributes["outcome"]: point.value for point in points if point.value} == {
        "delivered": 2,
        "refused": 1,
    }
    made.shutdown()
    meters.shutdown()


@pytest.mark.usefixtures("delays")
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tls_client_certificates_and_headers_are_as_the_variables_say(
    protocol: str, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with run_receiver(tls=pki) as receiver:
        endpoint = receiver.endpoint(protocol).replace("http:", "https:")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pki / "other.pem"))  # what the service trusts itself
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t,x-tenant=a")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(pki / "ca.pem"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(pki / "client.key"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(pki / "client.pem"))
        made = batch_processor.otlp_processor(f"otlp_proto_{protocol}", endpoint)
        record(made, "in private")
        made.shutdown()
        assert receiver.names() == ["in private"]
        assert receiver.headers[0]["authorization"] == "Bearer t"
        assert receiver.headers[0]["x-tenant"] == "a"


@pytest.mark.parametrize("status", [301, 307])
def test_no_redirection_takes_the_headers_elsewhere(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_receiver() as named, run_receiver() as elsewhere:
        to = {"location": f"{elsewhere.http}/v1/traces"}
        named.script.append(Reply(status=status, headers=to, takes=False))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", named.http)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t")
        made = batch_processor.otlp_processor("otlp_proto_http", named.http)
        record(made, "not there")
        made.shutdown()
        assert [headers["authorization"] for headers in named.headers] == ["Bearer t"]
        assert not elsewhere.headers


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrong", ["no certificate", "another authority"])
def test_tls_that_does_not_come_about_delivers_nothing(
    protocol: str, wrong: str, pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The opposite of the test before: it can be retried, since it is the set-up that is wrong and not the batch."""
    monkeypatch.setenv(
        "OTEL_EXPORTER_OTLP_CERTIFICATE", str(pki / ("ca.pem" if wrong == "no certificate" else "other.pem"))
    )
    if wrong != "no certificate":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_KEY", str(pki / "client.key"))
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", str(pki / "client.pem"))
    with run_receiver(tls=pki) as receiver:
        endpoint = receiver.endpoint(protocol).replace("http:", "https:")
        made = client(protocol, endpoint, timeout=2)
        outcome = made.send(request("a"))
        made.shutdown()
        assert (outcome.delivered, outcome.retryable) == (False, True)
        assert receiver.asked == 0

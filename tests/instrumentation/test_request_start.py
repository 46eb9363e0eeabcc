"""What a load balancer says of a request's start: all known spellings, and what is not to be believed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from services import run_service
from sink import run_sink
from stagetrace.instrumentation import request_start
from stagetrace.instrumentation.request_start import FUTURE, TOO_OLD, UNREADABLE, time_in_queue_ms, waited_ns

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_700_000_000_250_000_000


@pytest.mark.parametrize(
    ("value", "waited"),
    [
        ("1700000000", 250_000_000),
        ("t=1700000000", 250_000_000),
        ("1700000000.123", 127_000_000),
        ("t=1700000000.123", 127_000_000),
        ("t=1700000000.123456", 126_544_000),
        ("t=1700000000.123456789", 126_543_211),
        ("1700000000123", 127_000_000),
        ("t=1700000000123", 127_000_000),
        ("1700000000123.5", 126_500_000),
        ("1700000000123456", 126_544_000),
        ("t=1700000000123456", 126_544_000),
        ("t=1700000000123456 D=17", 126_544_000),
        ("1700000000123456789", 126_543_211),
        (" t = 1700000000123 ", 127_000_000),
        ("1700000000250", 0),
        ("t=1700000000.200, t=1700000000.123", 127_000_000),
        ("1699999400.250", 600_000_000_000),
        ("1699999400.249", TOO_OLD),
        ("1600000000", TOO_OLD),
        ("1700000000.251", FUTURE),
        ("1700000001", FUTURE),
        ("9999999999999", FUTURE),
        ("", UNREADABLE),
        ("t=", UNREADABLE),
        ("soon", UNREADABLE),
        ("0", UNREADABLE),
        ("-1700000000", UNREADABLE),
        ("170000000", UNREADABLE),
        ("17000000000", UNREADABLE),
        ("1700000000.", UNREADABLE),
        ("1700000000.1.2", UNREADABLE),
        ("1.7e9", UNREADABLE),
        ("t=1700000000.123, nonsense", UNREADABLE),
        ("\u0661\u0667\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0660", UNREADABLE),
        ("1" * 5_000, UNREADABLE),
    ],
)
def test_known_spellings_are_read_and_nothing_else(value: str, waited: int | str) -> None:
    assert waited_ns(value, NOW) == waited


def test_of_two_headers_the_longer_wait_counts_and_what_is_ignored_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_start, "ignored", {})
    assert time_in_queue_ms(["1700000000.200", "1700000000.100", "soon", "later", "1700000001"], NOW) == 150.0
    assert time_in_queue_ms(["1500000000"], NOW) is None
    assert request_start.ignored == {UNREADABLE: 2, FUTURE: 1, TOO_OLD: 1}


@pytest.mark.usefixtures("services")
def test_it_is_on_the_entry_span_and_no_part_of_the_duration(tmp_path: Path) -> None:
    with run_sink() as sink:
        env = {"STAGETRACE": "1", "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with run_service(tmp_path, env=env) as service:
            since = f"t={time.time() - 100:.6f}"
            told, _ = service.call("GET", "/plain", headers={"X-Request-Start": since})
            untold, _ = service.call("GET", "/plain", headers={"X-Queue-Start": "soon"})
            entry = sink.request(told).entry
            assert 100_000 <= entry.attributes["http.server.request.time_in_queue"] < 160_000
            assert entry.end - entry.start < 60_000_000_000
            assert "http.server.request.time_in_queue" not in sink.request(untold).entry.attributes
            service.stop()
            assert service.log.count("X-Request-Start or X-Queue-Start is ignored, it is unreadable: 'soon'") == 1

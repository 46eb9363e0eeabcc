"""The headers in which load balancers write when a request began to wait: all known formats, and invalid times."""

from __future__ import annotations

import pytest

from stagetrace.protocols import http_headers
from stagetrace.protocols.http_headers import FUTURE, TOO_OLD, UNREADABLE, time_in_queue_ms, waited_ns

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
def test_known_formats_are_read_and_nothing_else(value: str, waited: int | str) -> None:
    assert waited_ns(value, NOW) == waited


def test_of_two_headers_the_longer_wait_counts_and_what_is_ignored_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ignored: dict[str, int] = {}
    monkeypatch.setattr(http_headers, "ignored_headers", ignored)
    assert time_in_queue_ms(["1700000000.200", "1700000000.100", "soon", "later", "1700000001"], NOW) == 150.0
    assert time_in_queue_ms(["1500000000"], NOW) is None
    assert ignored == {UNREADABLE: 2, FUTURE: 1, TOO_OLD: 1}

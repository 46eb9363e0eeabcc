"""Where load may go: to this machine alone, unless its owner says so."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from stagetrace.load.base import LoadError, Target, addresses, parse


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000", Target("http", "localhost", 8000, "/")),
        ("http://localhost:8000/a b?q=ä&x=%20", Target("http", "localhost", 8000, "/a%20b?q=%C3%A4&x=%20")),
        ("HTTPS://[::1]/p#gone", Target("https", "::1", 443, "/p")),
        ("grpc://127.0.0.1:50051/pkg.Scorer/Predict", Target("grpc", "127.0.0.1", 50051, "/pkg.Scorer/Predict")),
    ],
)
def test_urls(url: str, expected: Target) -> None:
    assert parse(url) == expected


def test_the_host_header_has_the_port_unless_it_is_the_usual_one() -> None:
    assert parse("http://localhost:8000/").authority == "localhost:8000"
    assert parse("https://[::1]/").authority == "[::1]"


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("localhost:8000/predict", "no"),
        ("ftp://localhost/x", "nothing is sent by ftp"),
        ("http:///x", "the host is missing"),
        ("http://localhost:99999/", "Port out of range"),
        ("http://me:secret@localhost/", "authorization"),
        ("grpc://localhost:1/Predict", "service and method"),
        ("grpc://localhost:1/a/b/c", "service and method"),
        ("http://" + "a" * 300 + "/", "label"),
    ],
)
def test_urls_that_are_none(url: str, wrong: str) -> None:
    with pytest.raises(LoadError, match=wrong) as caught:
        parse(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_may_be_loaded(host: str) -> None:
    assert addresses(Target("http", host, 80, "/"), own=False)


@pytest.mark.parametrize("host", ["192.0.2.1", "10.0.0.1", "169.254.169.254", "2001:db8::1", "::ffff:192.0.2.1"])
def test_no_other_may_unless_it_is_ones_own(host: str) -> None:
    with pytest.raises(LoadError, match="--i-own-this"):
        addresses(Target("http", host, 80, "/"), own=False)
    assert addresses(Target("http", host, 80, "/"), own=True)


def test_a_name_must_mean_this_machine_with_each_of_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(_host: str, port: int, **_options: Any) -> list[Any]:
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, ("127.0.0.1", port)), (*kind, ("192.0.2.7", port))]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    with pytest.raises(LoadError, match=r"example\.test \(192\.0\.2\.7\) is beyond this machine"):
        addresses(Target("http", "example.test", 80, "/"), own=False)


def test_an_unknown_name_is_an_error_of_one_line() -> None:
    with pytest.raises(LoadError, match=r"^cannot find no-such-host\.invalid: [^\n]+$"):
        addresses(Target("http", "no-such-host.invalid", 80, "/"), own=False)

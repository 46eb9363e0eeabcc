"""OTLP over HTTP without `requests`: proxies, what cannot be used, and what is imported for it."""

from __future__ import annotations

import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
import requests.utils

from otlp.clients import client, request
from otlp.official import UNSET, send_official, send_ours
from otlp.proxy import run_proxy
from otlp.receiver import Receiver, Reply, run_receiver
from services import run_python
from stagetrace.otlp.export import connection
from stagetrace.otlp.export.client import ExportClient
from stagetrace.otlp.export.transport import HttpTransport

SECRET = "Basic " + b64encode(b"us@er:pass:word").decode()
NOWHERE = "http://nowhere.invalid:4318"  # which only the proxy knows


@pytest.fixture(autouse=True)
def no_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Have no proxy but the test's own, and no `.netrc`."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


# `{proxy}` is the address of the proxy. All name it for a receiver over HTTP, or over HTTPS, as said.
PLAIN = [
    {"HTTP_PROXY": "http://{proxy}"},
    {"http_proxy": "http://{proxy}/", "HTTP_PROXY": "http://127.0.0.1:1"},
    {"ALL_PROXY": "http://{proxy}"},
    {"all_proxy": "{proxy}"},
    {"HTTP_PROXY": "http://{proxy}", "ALL_PROXY": "socks5://127.0.0.1:1", "HTTPS_PROXY": "http://127.0.0.1:1"},
    {"HTTP_PROXY": "http://us%40er:pass%3Aword@{proxy}"},
    {"HTTP_PROXY": "http://user@{proxy}"},
    {"HTTP_PROXY": "http://{proxy}", "NO_PROXY": "elsewhere.invalid,10.0.0.0/8"},
]
TUNNELS = [
    {"HTTPS_PROXY": "http://{proxy}"},
    {"https_proxy": "{proxy}", "HTTPS_PROXY": "http://127.0.0.1:1", "HTTP_PROXY": "http://127.0.0.1:1"},
    {"ALL_PROXY": "http://{proxy}"},
    {"HTTPS_PROXY": "http://us%40er:pass%3Aword@{proxy}", "NO_PROXY": "localhost,10.0.0.0/8"},
]


def sent(variables: dict[str, str], wants: str = "") -> tuple[Any, ...]:
    """Send by both exporters; return what the proxy was asked for, and paths and headers that arrived."""
    found = []
    for send in (send_official, send_ours):
        with run_receiver() as receiver, run_proxy(receiver.ports[1], wants) as proxy:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", NOWHERE)
                patch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")
                for name, value in variables.items():
                    patch.setenv(name, value.format(proxy=proxy.address))
                delivered = send("http")
            headers = [{name: one.get(name) for name in ("host", "content-type")} for one in receiver.headers]
            found.append((delivered, proxy.asked, receiver.paths, headers))
    assert found[0] == found[1]
    return found[1]


@pytest.mark.parametrize("variables", PLAIN, ids=str)
def test_a_proxy_forwards_what_goes_over_http(variables: dict[str, str]) -> None:
    delivered, asked, paths, headers = sent(variables)
    credentials = SECRET if "us%40er" in str(variables) else None
    assert asked == [("POST", f"{NOWHERE}/v1/traces", "nowhere.invalid:4318", credentials)]
    assert (delivered, paths, headers[0]["host"]) == (True, ["/v1/traces"], "nowhere.invalid:4318")


def test_a_proxy_that_refuses_delivers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    delivered, asked, paths, _ = sent({"HTTP_PROXY": "http://user:wrong@{proxy}"}, SECRET)
    assert (delivered, len(asked), paths) == (False, 1, [])
    with run_receiver() as receiver, run_proxy(receiver.ports[1], SECRET) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        made = client("http", NOWHERE)
        outcome = made.send(request("a"))
        made.shutdown()
    assert (outcome.misdirected, outcome.reason) == (True, "HTTP 407 Proxy Authentication Required")


def test_a_connection_to_a_proxy_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed one is opened again at once, as without a proxy."""
    with run_receiver() as receiver, run_proxy(receiver.ports[1]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
        made = client("http", NOWHERE)
        for name in ("a", "b"):
            assert made.send(request(name)).delivered
        made._transport._way._connection.sock.close()  # type: ignore[union-attr]
        assert made.send(request("c")).delivered
        made.shutdown()
        assert receiver.names() == ["a", "b", "c"]
        assert len(proxy.asked) == 3


def secure(monkeypatch: pytest.MonkeyPatch, receiver: Receiver, pki: Path) -> None:
    names = {"CERTIFICATE": "ca.pem", "CLIENT_KEY": "client.key", "CLIENT_CERTIFICATE": "client.pem"}
    for name, file in names.items():
        monkeypatch.setenv(f"OTEL_EXPORTER_OTLP_{name}", str(pki / file))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http.replace("http:", "https:"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20t")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "5")


@pytest.mark.parametrize("variables", TUNNELS, ids=str)
def test_what_goes_over_https_goes_through_a_tunnel(
    variables: dict[str, str], pki: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS from end to end: the receiver sees the client's certificate, and the proxy no header."""
    for send in (send_official, send_ours):
        with run_receiver(tls=pki) as receiver, run_proxy(receiver.ports[1]) as proxy:
            secure(monkeypatch, receiver, pki)
            for name, value in variables.items():
                monkeypatch.setenv(name, value.format(proxy=proxy.address))
            assert send("http")
            ((method, target, _, credentials),) = proxy.asked
            assert (method, target) == ("CONNECT", receiver.http.removeprefix("http://"))
            assert credentials == (SECRET if "us%40er" in str(variables) else None)
            assert (receiver.clients, receiver.paths) == (["client"], ["/v1/traces"])
            assert receiver.headers[0]["authorization"] == "Bearer t"
            assert "proxy-authorization" not in receiver.headers[0]


def test_a_tunnel_that_is_refused_delivers_nothing(pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_receiver(tls=pki) as receiver, run_proxy(receiver.ports[1], SECRET) as proxy:
        secure(monkeypatch, receiver, pki)
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
        made = ExportClient(HttpTransport, "there")
        outcome = made.send(request("a"))
        made.shutdown()
        assert (outcome.delivered, outcome.retryable, receiver.asked) == (False, True, 0)
        assert outcome.reason == "OSError: Tunnel connection failed: 407 Proxy Authentication Required"


@pytest.mark.parametrize("wrong", ["an authority of the proxy's choice", "a proxy that is not there"])
def test_a_tunnel_is_not_trusted_more_than_a_connection(wrong: str, pki: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_receiver(tls=pki) as receiver, run_proxy(receiver.ports[1]) as proxy:
        secure(monkeypatch, receiver, pki)
        if wrong.startswith("an authority"):
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(pki / "other.pem"))
        monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address if 'authority' in wrong else '127.0.0.1:1'}")
        made = ExportClient(HttpTransport, "there")
        outcome = made.send(request("a"))
        made.shutdown()
        assert (outcome.delivered, outcome.retryable, receiver.asked) == (False, True, 0)


URLS = [
    *("http://collector:4318", "https://collector", "http://collector.observability.svc:4318", "https://10.1.2.3:4318"),
    *("http://127.0.0.1", "http://[::1]:4318", "https://COLLECTOR.example.com", "http://b\u00fccher.example"),
]
LISTS = [
    *("", "*", "collector", "collector:4318", "collector:1", ".svc,.example.com", "svc", "observability.svc:4318"),
    *("10.0.0.0/8", "10.1.2.3", "10.1.2.0/30, 127.0.0.1", "10.0.0.0/40,x/8,/", "::1", "localhost", "example.com"),
    *(" collector , x", "ollector", "3", "10.1.2"),
]


@pytest.mark.parametrize("variable", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("listed", LISTS)
def test_receivers_without_a_proxy_are_those_of_requests(
    listed: str, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:3128")
    monkeypatch.setenv("ALL_PROXY", "http://proxy:3128")
    monkeypatch.setenv(variable, listed)
    for url in URLS:
        theirs = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url))
        assert bool(connection._proxy(connection._address(url))) == bool(theirs), url


UNUSABLE = "cannot be used: it has to be http://HOST:PORT"


@pytest.mark.parametrize("proxy", ["socks5://proxy:1080", "https://proxy:3128", "http://", "http://proxy:port"])
def test_a_proxy_that_cannot_be_used_is_named(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy.replace("//p", "//user:secret@p"))
    outcome = ExportClient(lambda: HttpTransport("TRACES"), "there").send(b"")
    assert (outcome.delivered, outcome.misdirected) == (False, True)
    assert f", of HTTP_PROXY or ALL_PROXY, {UNUSABLE}; name localhost in NO_PROXY to do without one" in outcome.reason
    assert "secret" not in outcome.reason


@pytest.mark.parametrize("url", ["collector:4318", "ftp://collector", "http://collector:otlp", "http://[::1"])
def test_a_url_that_cannot_be_used_is_named(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    outcome = ExportClient(lambda: HttpTransport("TRACES"), "there").send(b"")
    assert (outcome.delivered, outcome.misdirected) == (False, True)  # a spool keeps the spans
    reason = f"the exporter cannot be loaded: ValueError: {url}/v1/traces {UNUSABLE} or https://HOST:PORT"
    assert outcome.reason == reason


# What is imported.

SENDS = """
import sys
from stagetrace.otlp.export.client import ExportClient
from stagetrace.otlp.export.transport import HttpTransport
made = ExportClient(lambda: HttpTransport("TRACES"), "there")
outcome = made.send(b"")
made.shutdown()
print(outcome)
packages = {name.partition(".")[0] for name in sys.modules}
print(*sorted(packages & {"requests", "urllib3", "opentelemetry", "google", "grpc", "certifi", "typing_extensions"}))
"""
DELIVERED = "Outcome(delivered=True, rejected=0, retryable=False, misdirected=False, wait_s=0.0, reason='', speaks='')"


@pytest.mark.parametrize("has_packages", [False, True])
def test_nothing_but_the_standard_library_is_needed(has_packages: bool, pki: Path, tmp_path: Path) -> None:
    """Without the folder of packages the authorities are the system's, or those that a variable names."""
    source = str(Path(connection.__file__).parents[3])
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login mine password its\n")
    with run_receiver(tls=pki) as receiver, run_proxy(receiver.ports[1]) as proxy:
        env = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http.replace("http:", "https:"),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(pki / "client.key"),
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(pki / "client.pem"),
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            ("OTEL_EXPORTER_OTLP_CERTIFICATE" if has_packages else "SSL_CERT_FILE"): str(pki / "ca.pem"),
            "HTTPS_PROXY": f"http://user:password@{proxy.address}",
        }
        done = run_python(*(() if has_packages else ("-S",)), "-c", SENDS, PYTHONPATH=source, HOME=str(tmp_path), **env)
        assert done.stdout.splitlines() == [DELIVERED, "certifi" if has_packages else ""], done.stderr
        assert receiver.headers[0]["authorization"] == "Basic " + b64encode(b"mine:its").decode()
        assert [method for method, *_ in proxy.asked] == ["CONNECT"]
    assert ("grpcio is not installed: spans go over HTTP to https://127" in done.stderr) != has_packages


PROVIDER = """
import requests
def session():
    made = requests.Session()
    made.headers["x-token"] = "mine"
    return made
"""


def test_requests_is_used_where_a_credential_provider_makes_its_session(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cloud.py").write_text(PROVIDER)
    (tmp_path / "cloud-1.dist-info").mkdir()
    (tmp_path / "cloud-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: cloud\nVersion: 1\n")
    points = "[opentelemetry_otlp_credential_provider]\nours = cloud:session\n"
    (tmp_path / "cloud-1.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER", "ours")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.http)
    try:
        receiver.script.append(Reply(status=307, headers={"location": f"{receiver.http}/elsewhere"}, takes=False))
        assert not send_ours("http")
        for send in (send_official, send_ours):
            assert send("http")
    finally:
        sys.modules.pop("cloud", None)
    assert receiver.paths == ["/v1/traces"] * 3
    assert [headers["x-token"] for headers in receiver.headers] == ["mine"] * 3

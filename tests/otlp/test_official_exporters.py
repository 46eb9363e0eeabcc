"""Our transports beside the official exporters: of the same variables, the same arrives."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans as official

from otlp.clients import PROTOCOLS
from otlp.official import SPANS, arrived, send_official, send_ours, variables
from services import run_python
from stagetrace import guard
from stagetrace.patches import opentelemetry as patched

if TYPE_CHECKING:
    from pathlib import Path

    from otlp.receiver import Receiver

# `{url}` is the receiver's address as a URL, `{address}` without a scheme, `{pki}` a folder of certificates.
PLAIN = {
    "endpoint": variables(ENDPOINT="{url}"),
    "a slash at its end": variables(ENDPOINT="{url}/"),
    "a path": variables(ENDPOINT="{url}/below"),
    "an endpoint of traces": variables(TRACES_ENDPOINT="{url}/mine/it/is", ENDPOINT="http://127.0.0.1:1"),
    "empty is unset": variables(TRACES_ENDPOINT="", ENDPOINT="{url}", TRACES_HEADERS="", HEADERS="a=1"),
    "headers": variables(ENDPOINT="{url}", HEADERS="Authorization=Bearer%20t,x-tenant=a b,broken,empty="),
    "headers of traces": variables(ENDPOINT="{url}", HEADERS="a=1,b=2", TRACES_HEADERS="b=3"),
    "gzip": variables(ENDPOINT="{url}", COMPRESSION="gzip"),
    "gzip of traces": variables(ENDPOINT="{url}", TRACES_COMPRESSION="GZIP"),
    "timeout": variables(ENDPOINT="{url}", TIMEOUT="7", TRACES_TIMEOUT="5.5"),
}
HTTP = {
    "deflate": variables(ENDPOINT="{url}", COMPRESSION="deflate"),
    "no compression of traces": variables(ENDPOINT="{url}", COMPRESSION="gzip", TRACES_COMPRESSION="none"),
    "an unknown compression": variables(ENDPOINT="{url}", COMPRESSION="lz4"),
    "a timeout that is no number": variables(ENDPOINT="{url}", TIMEOUT="soon"),
    "headers over ours": variables(ENDPOINT="{url}", HEADERS="content-type=application/x-other,user-agent=me"),
    "characters that no URL has": variables(ENDPOINT="{url}/a b/\u00fc|%20[1]?tenant=\u00e4 b&c=%26"),
    "a user": variables(ENDPOINT="http://us%40er:pass%3Aword@{address}", HEADERS="authorization=Bearer%20t"),
    "a user without a password": variables(ENDPOINT="http://user@{address}", HEADERS="authorization=Bearer%20t"),
    "a user of netrc": variables(ENDPOINT="http://another:one@{address}") | {"NETRC": "{pki}/netrc"},
    "a netrc for others": variables(ENDPOINT="{url}") | {"NETRC": "{pki}/netrc of others"},
    "no netrc": variables(ENDPOINT="{url}") | {"NETRC": "{pki}/ca.key"},
}
GRPC = {
    "insecure": variables(ENDPOINT="{address}", INSECURE="true"),
    "insecure traces": variables(ENDPOINT="{address}", INSECURE="false", TRACES_INSECURE="True"),
}
TLS_FILES = {"CERTIFICATE": "{pki}/ca.pem", "CLIENT_KEY": "{pki}/client.key", "CLIENT_CERTIFICATE": "{pki}/client.pem"}
OURS = {name: path for name, path in TLS_FILES.items() if name != "CERTIFICATE"}
TRACES_FILES = {f"TRACES_{name}": path for name, path in TLS_FILES.items()}
OTHER = {**TLS_FILES, "CERTIFICATE": "{pki}/other.pem"}
TLS = {
    "certificates": variables(ENDPOINT="{tls_url}", **TLS_FILES),
    "certificates of traces": variables(ENDPOINT="{tls_url}", **OTHER, **TRACES_FILES),
    "another authority": variables(ENDPOINT="{tls_url}", TIMEOUT="1", **OTHER),
    "no client certificate": variables(ENDPOINT="{tls_url}", TIMEOUT="1", CERTIFICATE="{pki}/ca.pem"),
    "no such file": variables(ENDPOINT="{tls_url}", TIMEOUT="1", CERTIFICATE="{pki}/none.pem"),
    "https is never insecure": variables(ENDPOINT="{tls_url}", INSECURE="true", **TLS_FILES),
}
TLS_HTTP = {
    "authorities of requests": variables(ENDPOINT="{tls_url}", **OURS) | {"REQUESTS_CA_BUNDLE": "{pki}/ca.pem"},
    "authorities of curl": variables(ENDPOINT="{tls_url}", **OURS) | {"CURL_CA_BUNDLE": "{pki}/folder"},
}
TLS_GRPC = {"no scheme is secure": variables(ENDPOINT="{address}", **TLS_FILES)}


def rows() -> list[Any]:
    by_protocol = {"grpc": (PLAIN | GRPC, TLS | TLS_GRPC), "http": (PLAIN | HTTP, TLS | TLS_HTTP)}
    return [
        pytest.param(protocol, settings, is_tls, id=f"{protocol}: {name}")
        for protocol in PROTOCOLS
        for is_tls, group in enumerate(by_protocol[protocol])
        for name, settings in group.items()
    ]


@pytest.mark.parametrize(("protocol", "settings", "tls"), rows())
def test_the_same_arrives(protocol: str, settings: dict[str, str], tls: bool, pki: Path) -> None:
    theirs = arrived(send_official, protocol, settings, pki, tls=tls)
    ours = arrived(send_ours, protocol, settings, pki, tls=tls)
    assert ours == theirs
    refused = any("other.pem" in value or "none.pem" in value for value in settings.values())
    can_be = not tls or (not refused and "OTEL_EXPORTER_OTLP_CLIENT_KEY" in settings)
    assert ours[0] == (can_be or "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY" in settings)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_user_agent_is_ours(protocol: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint(protocol))
    assert send_ours(protocol)
    assert receiver.headers[0]["user-agent"].startswith("stagetrace/")


# The encoder of exporters that a service makes itself.


def test_the_encoder_of_official_exporters_gives_the_same_message() -> None:
    module: Any = ModuleType("trace_encoder")
    module.encode_spans = official
    patched.patch_trace_encoder(module)
    assert module.encode_spans is not official
    assert module.encode_spans(SPANS) == official(SPANS)


def test_an_encoder_that_fails_gives_way_to_the_official_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Any) -> Any:
        raise RuntimeError("the encoder is broken")

    monkeypatch.setattr("stagetrace.otlp.encode.encode_spans", fails)
    monkeypatch.setattr(guard, "failures", {})
    module: Any = ModuleType("trace_encoder")
    module.encode_spans = official
    patched.patch_trace_encoder(module)
    assert module.encode_spans(SPANS) == official(SPANS)
    assert guard.failures == {"stagetrace.otlp.encode": 1}


def test_activation_gives_it_to_both_exporters() -> None:
    code = """
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http
print(grpc.encode_spans.__module__, http.encode_spans.__module__)
"""
    done = run_python("-c", code, STAGETRACE="1")
    assert done.stdout.split() == ["stagetrace.patches.opentelemetry"] * 2

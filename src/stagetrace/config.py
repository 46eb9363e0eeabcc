"""What the environment asks for; each variable is described in docs/environment.md."""

from __future__ import annotations

import os

OFF = ("", "0", "false")
# Parts of the names of headers and query parameters whose values are not recorded, asked for or not.
SECRET = (
    *("authoriz", "authentic", "x-auth", "cookie", "token", "secret", "passw", "pwd", "credential", "session"),
    *("signature", "api-key", "api_key", "apikey", "accesskey", "access-key", "access_key", "private", "jwt", "otp"),
)


def enabled() -> bool:
    """Return whether STAGETRACE switches recording on."""
    return os.environ.get("STAGETRACE", "").strip().lower() not in OFF


def flag(name: str) -> bool:
    """Return whether a variable switches something on."""
    return os.environ.get(name, "").strip().lower() not in OFF


def redacted() -> list[str]:
    """Return the words that make a header or a query parameter secret: STAGETRACE_REDACT adds to those built in."""
    asked = os.environ.get("STAGETRACE_REDACT", "").split(",")
    return [*SECRET, *(word.strip() for word in asked if word.strip())]


def policy_text() -> str | None:
    """Return the text of STAGETRACE_SLA, or None where no promise is given."""
    return os.environ.get("STAGETRACE_SLA", "").strip() or None


def exporters(signal: str, default: str) -> list[str]:
    """Return the entry point names of the exporters that OTEL_* asks for; none of them for `none`.

    `signal` is `TRACES` or `METRICS`. The plain name `otlp` is resolved by the protocol variables, gRPC by default.
    """
    names = (os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip() or default).split(",")
    return [_resolved(signal, name.strip()) for name in names if name.strip() not in ("", "none")]


def _resolved(signal: str, name: str) -> str:
    if name != "otlp":
        return name
    protocol = (
        os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL")
        or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        or "grpc"
    ).strip()
    return {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}.get(protocol, f"otlp ({protocol})")


def endpoint() -> str:
    """Return where spans are sent, as OTEL_* says; for messages only, the exporter reads it for itself."""
    http = "otlp_proto_http" in exporters("TRACES", "otlp")
    return (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or ("http://localhost:4318" if http else "http://localhost:4317")
    )

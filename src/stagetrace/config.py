"""What the environment asks for; each variable is described in docs/environment.md."""

from __future__ import annotations

import os

OFF = ("", "0", "false")


def enabled() -> bool:
    """Return whether STAGETRACE switches recording on."""
    return os.environ.get("STAGETRACE", "").strip().lower() not in OFF


def policy_text() -> str | None:
    """Return the text of STAGETRACE_SLA, or None where no promise is given."""
    return os.environ.get("STAGETRACE_SLA", "").strip() or None


def exporter_name(signal: str, default: str) -> str:
    """Return the entry point name of the exporter that OTEL_* asks for.

    `signal` is `TRACES` or `METRICS`. The plain name `otlp` is resolved by the protocol variables, gRPC by default.
    """
    name = os.environ.get(f"OTEL_{signal}_EXPORTER", "").strip() or default
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
    http = exporter_name("TRACES", "otlp") == "otlp_proto_http"
    return (
        os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
        or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
        or ("http://localhost:4318" if http else "http://localhost:4317")
    )

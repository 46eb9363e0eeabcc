"""Services whose authors use OpenTelemetry themselves: their environment, and what their names stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sink import Sink


def environment(sink: Sink, sla: str, **more: str) -> dict[str, str]:
    """Return the variables of a service that sends spans by gRPC, and nothing else."""
    alone = {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    return sink.environment(
        STAGETRACE_SLA=sla, SINK=sink.endpoint, OTEL_SERVICE_NAME="from-environment", **alone, **more
    )


def untraced(env: dict[str, str]) -> dict[str, str]:
    """Return the variables without the one that switches the recording on."""
    return {name: value for name, value in env.items() if name != "STAGETRACE"}

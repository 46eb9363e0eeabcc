"""A wrong value of a user's variable is reported as such, in two lines; it is no fault of ours, and harms nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from services import run_service
from stagetrace.errors import PolicyError
from stagetrace.policy.policy import Policy
from stagetrace.settings import unusable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sink import Sink

FAULT = "This is a fault of stagetrace"


@pytest.mark.usefixtures("services")
def test_what_opentelemetry_cannot_use_is_named_once(tmp_path: Path) -> None:
    variable, value = "OTEL_PROPAGATORS", "tracecontext,no-such"
    env = {"STAGETRACE": "1", "STAGETRACE_STATUS": "0", variable: value}
    with run_service(tmp_path, "any_bare", env=env) as service:
        assert service.client.get("/").status_code == 200
        service.stop()
    logged = [line for line in service.log.splitlines() if line.startswith("stagetrace: ")]
    assert len(logged) == 1
    assert logged[0].startswith(f"stagetrace: OpenTelemetry cannot use {variable}={value} (ValueError: ")
    assert FAULT not in service.log


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    "variables",
    [
        {
            "STAGETRACE_SPOOL": "~no-such-person/spool",
            "STAGETRACE_STATUS": "~no-such-person/status",
            "OTEL_BSP_SCHEDULE_DELAY": "9223372036854775807",
        },
        {"OTEL_BSP_SCHEDULE_DELAY": "²"},
        {"OTEL_SPAN_LINK_COUNT_LIMIT": "-4"},
        {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "many"},
    ],
)
def test_our_own_are_left_aside_and_all_is_recorded(variables: dict[str, str], sink: Sink, tmp_path: Path) -> None:
    env = sink.environment(STAGETRACE_STATUS="0") | variables
    with run_service(tmp_path, "any_bare", env=env) as service:
        trace_id, response = service.call("GET", "/")
        assert response.status_code == 200
        service.stop()
    assert sink.request(trace_id).entry
    assert FAULT not in service.log
    assert "Traceback" not in service.log


@pytest.mark.parametrize(
    ("value", "error", "call"),
    [
        pytest.param("half", "half", lambda: Policy.parse("half"), id="what we raise"),
        pytest.param("half", "half", lambda: float("half"), id="what Python raises"),
        pytest.param("baggage", "Probability", lambda: TraceIdRatioBased(2), id="OpenTelemetry, about something else"),
        pytest.param("abil", "Probability", lambda: TraceIdRatioBased(2), id="of which the value is part of a word"),
    ],
)
def test_what_is_not_blamed_on_a_variable(
    value: str, error: str, call: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", value)
    with pytest.raises((PolicyError, ValueError), match=error) as raised:
        call()
    assert unusable(raised.value) is None


def test_headers_are_but_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")
    with pytest.raises(ValueError, match="HEADERS") as raised:
        exec("raise ValueError('OTEL_EXPORTER_OTLP_HEADERS')", {"__name__": "opentelemetry.exporter"})  # noqa: S102
    assert unusable(raised.value) == "OTEL_EXPORTER_OTLP_HEADERS"

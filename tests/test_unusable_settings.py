"""A wrong value of a user's variable is reported as such, in two lines; it is no fault of ours, and harms nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from services import run_service
from sink import run_sink
from stagetrace.errors import PolicyError
from stagetrace.sla.policy import Policy
from stagetrace.unusable_settings import unusable

if TYPE_CHECKING:
    from pathlib import Path

FAULT = "This is a fault of stagetrace"


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_PROPAGATORS", "tracecontext,no-such"),
        ("OTEL_SPAN_LINK_COUNT_LIMIT", "-4"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
    ],
)
def test_what_opentelemetry_cannot_use_is_named_once(variable: str, value: str, tmp_path: Path) -> None:
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
    ],
)
def test_our_own_are_left_aside_and_all_is_recorded(variables: dict[str, str], tmp_path: Path) -> None:
    with run_sink() as sink:
        env = {"STAGETRACE": "1", "STAGETRACE_STATUS": "0", "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
        with run_service(tmp_path, "any_bare", env=env | variables) as service:
            trace_id, response = service.call("GET", "/")
            assert response.status_code == 200
            service.stop()
        assert sink.request(trace_id).entry
    assert FAULT not in service.log
    assert "Traceback" not in service.log


def test_what_we_raise_is_not_blamed_on_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "half")
    with pytest.raises(PolicyError) as raised:
        Policy.parse("half")
    assert unusable(raised.value) is None
    with pytest.raises(ValueError, match="half") as other:
        float("half")
    assert unusable(other.value) is None


def test_what_opentelemetry_raises_about_something_else_is_not_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "baggage")
    with pytest.raises(ValueError, match="Probability") as raised:
        TraceIdRatioBased(2)
    assert unusable(raised.value) is None


def test_a_part_of_a_word_is_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PROPAGATORS", "abil")
    with pytest.raises(ValueError, match="Probability") as raised:
        TraceIdRatioBased(2)
    assert unusable(raised.value) is None


def test_headers_are_but_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret")
    with pytest.raises(ValueError, match="HEADERS") as raised:
        exec("raise ValueError('OTEL_EXPORTER_OTLP_HEADERS')", {"__name__": "opentelemetry.exporter"})  # noqa: S102
    assert unusable(raised.value) == "OTEL_EXPORTER_OTLP_HEADERS"

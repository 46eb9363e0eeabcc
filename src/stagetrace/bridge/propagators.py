"""Propagators of the service: the headers that one adds to a response; those that OTEL_CONFIG_FILE names."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.propagators.textmap import Setter
from opentelemetry.trace import NonRecordingSpan, set_span_in_context

from stagetrace import log, settings
from stagetrace.bridge.contexts import span_context
from stagetrace.guard import guarded


class _Append(Setter[list[tuple[str, str]]]):
    def set(self, carrier: list[tuple[str, str]], key: str, value: str) -> None:
        carrier.append((key, value))


_append = _Append()


@guarded
def take_from_file() -> None:
    """Let contexts travel as the file of OTEL_CONFIG_FILE says, which OpenTelemetry does not read.

    A propagator that the service has set itself stays.
    """
    names = settings.PROPAGATORS.read() if settings.CONFIG_FILE.read() else []
    if not names or type(propagate.get_global_textmap()) is not CompositePropagator:
        return
    made = []
    for name in names:
        try:
            (point,) = entry_points(group="opentelemetry_propagator", name=name)
            made.append(point.load()())
        except Exception as error:  # noqa: BLE001, PERF203
            if name != "none":
                log.once(
                    f"propagator {name}",
                    f"cannot use the propagator {name!r} of OTEL_CONFIG_FILE ({type(error).__name__}: {error}); "
                    f"the others are used.\nInstall what offers it: opentelemetry-propagator-{name}.",
                )
    propagate.set_global_textmap(CompositePropagator(made))


def announced(span: Any) -> list[tuple[str, str]]:
    """Return the headers that the propagator, if there is one, writes for a span."""
    from opentelemetry.instrumentation.propagators import get_global_response_propagator

    propagator: Any = get_global_response_propagator()  # type: ignore[no-untyped-call]
    headers: list[tuple[str, str]] = []
    if propagator is not None:
        context = getattr(span, "context", None) or span.get_span_context()  # not the open stage's
        around = set_span_in_context(NonRecordingSpan(span_context(context)), Context())
        propagator.inject(headers, around, _append)
    return headers

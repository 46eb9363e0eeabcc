"""OpenTelemetry's own instrumentations of databases, applied in a process that serves, where they are installed.

Only those that give the service the same objects as before: the others (sqlite3, PyMySQL, mysqlclient) put a
proxy in place of each connection, which C code does not take. psycopg2's fails a `connect` with a positional
`cursor_factory`. An instrumentation that the service applies itself, or by
`opentelemetry-instrument`, is left as it is, and takes over from ours.
"""

from __future__ import annotations

import functools
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from stagetrace import log, settings
from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import after, patching

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

_PACKAGE = "opentelemetry.instrumentation"
_engines: WeakSet[Any] = WeakSet()  # of SQLAlchemy, made before this process served
_trace_engine: Callable[[Any], None] | None = None  # from then on


def patch_client(module: ModuleType) -> None:
    """Apply the instrumentation of a client."""
    from opentelemetry.metrics import NoOpMeterProvider

    from stagetrace.bridge.child_spans import ChildSpans

    instrumentor = _instrumentor(module.__name__)
    if instrumentor is not None:
        instrumentor.instrument(tracer_provider=ChildSpans(), meter_provider=NoOpMeterProvider(), skip_dep_check=True)
        _give_way(instrumentor, instrumentor.uninstrument)


def patch_sqlalchemy(module: ModuleType) -> None:
    """Trace the statements of all engines. Waiting for a connection of the pool is no call, and not traced."""
    global _trace_engine  # noqa: PLW0603
    instrumentor = _instrumentor(module.__name__)
    if instrumentor is None:
        return
    from opentelemetry.instrumentation.sqlalchemy.engine import EngineTracer  # type: ignore[import-not-found]
    from opentelemetry.metrics import NoOpMeter

    from stagetrace.bridge.child_spans import ChildSpans

    tracer = ChildSpans().get_tracer(f"{_PACKAGE}.sqlalchemy")
    connections = NoOpMeter("stagetrace").create_up_down_counter("connections")

    def trace_engine(engine: Any) -> None:
        EngineTracer(tracer, engine, connections)

    def stop() -> None:
        global _trace_engine  # noqa: PLW0603
        _trace_engine = None
        EngineTracer.remove_all_event_listeners()

    _trace_engine = trace_engine
    _give_way(instrumentor, stop)
    for engine in list(_engines):
        _note_engine(engine)
    _engines.clear()


@guarded
def _note_engine(engine: Any, *_: Any, **__: Any) -> None:
    if _trace_engine is None:
        _engines.add(engine)
    else:
        _trace_engine(engine)


patch_engines = patching({"create_engine": after(_note_engine)})  # under whatever name it will be imported


def _instrumentor(name: str) -> Any:
    """Return the instrumentor of a library; None where it is not installed, not wanted, or has been applied."""
    disabled = settings.OTEL_DISABLED.read()
    if name in disabled or "*" in disabled or f"{_PACKAGE}.auto_instrumentation" in sys.modules:
        return None
    try:
        base = import_module(f"{_PACKAGE}.instrumentor").BaseInstrumentor
        module = import_module(f"{_PACKAGE}.{name}")
    except ImportError as error:  # not installed, or for another version of the library
        log.debug(f"{name} has no instrumentation of OpenTelemetry here: {error}")
        return None
    classes = (one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__)
    found: Any = next((one for one in classes if issubclass(one, base)), None)
    instrumentor = None if found is None else found()
    if instrumentor is None or instrumentor.is_instrumented_by_opentelemetry:
        return None
    conflict = instrumentor._check_dependency_conflicts()
    if conflict:
        log.debug(f"OpenTelemetry's instrumentation of {name} is not applied: {conflict}")
        return None
    return instrumentor


def _give_way(instrumentor: Any, stop: Callable[[], None]) -> None:
    """Let a later call of `instrument` by the service find the library as it was."""
    original = instrumentor.instrument

    @functools.wraps(original)
    def instrument(**kwargs: Any) -> Any:
        vars(instrumentor).pop("instrument", None)
        guarded_end(stop)()
        return original(**kwargs)

    instrumentor.instrument = instrument

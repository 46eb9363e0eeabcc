"""Handlers that record without end."""

from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI
from opentelemetry import trace

from stagetrace import stage

app = FastAPI()
OK = {"ok": True}
LONG = "x" * 10_000_000


class Raises:
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Opens:
    def __str__(self) -> str:
        with trace.get_tracer("app").start_as_current_span("opened by __str__"), stage("within"):
            return "opened"


@app.get("/health")
async def health() -> dict[str, bool]:
    return OK


@app.get("/stages")
def stages() -> dict[str, bool]:
    for number in range(100_000):
        with stage(f"stage {number}", number=number):
            pass
    return OK


@app.get("/nested-stages")
def nested_stages() -> dict[str, bool]:
    with ExitStack() as stack:
        for number in range(5_000):
            stack.enter_context(stage(f"stage {number % 100}"))
    return OK


@app.get("/long/{where}")
def long(where: str) -> dict[str, bool]:
    span = trace.get_current_span()
    if where == "current":
        span.set_attribute("long", LONG)
    elif where == "list":
        span.set_attribute("long", [LONG[:1000]] * 10_000)
    elif where == "event":
        span.add_event("event", {"long": LONG})
    elif where == "stage":
        with stage("long", long=LONG):
            pass
    else:
        attributes = {"long": LONG, "exact": "y" * 16_384}
        with trace.get_tracer("app").start_as_current_span("child", attributes=attributes):
            pass
    return OK


@app.get("/any/{path}")
async def any_path(path: str) -> dict[str, bool]:
    return {"ok": bool(path)}


@app.get("/objects")
def objects() -> dict[str, bool]:
    cycle: list[Any] = []
    cycle.append(cycle)
    with stage("cycle", value=cycle):
        pass
    with stage("raises", value=Raises(), after=1):
        pass
    with stage("opens", value=Opens()):
        pass
    with stage("huge", value=2**70):
        pass
    with stage("many", **{f"key {number}": number for number in range(1000)}):
        pass
    span = trace.get_current_span()
    for value in (cycle, Raises(), Opens(), {"a": cycle}):
        span.set_attribute("odd", value)
        span.add_event("odd", {"odd": value})
    span.set_attribute("after", "all")
    return OK


@app.get("/spans/{count}")
def spans(count: int) -> dict[str, bool]:
    tracer = trace.get_tracer("app")
    for _ in range(count):
        tracer.start_span("detail").end()
    return OK

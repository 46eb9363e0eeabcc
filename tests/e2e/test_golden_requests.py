"""Requests of each protocol as their spans leave a service: whole, as text, with times and ids by name.

What differs between two runs stands as its kind (`<ms>`, `<text>`), and readings that a request has by chance are left
out. `STAGETRACE_WRITE_GOLDEN=1` writes the files of `golden_requests/` anew: the change is to be read, line by line.
"""

from __future__ import annotations

import os
import secrets
import socket
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import instrumentation.grpc_client as rpc
from services import Service, asgi_command, run_service, wsgi_command
from sink import SERVER, SHORT_NS, Sink, run_sink
from trees import at_its_best

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Ask = Callable[[Any, str], object]  # makes a request of a service in a trace

pytestmark = pytest.mark.usefixtures("services")

GOLDEN = Path(__file__).parent / "golden_requests"
WRITES = bool(os.environ.get("STAGETRACE_WRITE_GOLDEN"))
POLICY = "GET /two-calls within 1ms; * within 20s"
RPC_POLICY = "ml.Scorer/Sleep within 1ms; * within 20s"
UPSTREAM = "0" * 15 + "7"
KINDS = {1: "INTERNAL", 2: "SERVER", 3: "CLIENT"}
# What a request has by chance: where a collector of garbage ran, a thread was sampled, a machine was busy.
BY_CHANCE: tuple[str, ...] = (
    "stagetrace.gc.",
    "stagetrace.cpu.",
    "stagetrace.process.",
    "stagetrace.host.",
    "stagetrace.dropped",
)
BY_CHANCE += (
    "stagetrace.skipped",
    "stagetrace.machine.",
    "stagetrace.memory.",
    "ml.cold",
    "queue.blocked_by",
    "queue.wake",
)
# Of a breach, what its time is made of is tested with the causes.
OF_CAUSES = ("sla.breach.", "stagetrace.queue", "stagetrace.page_faults")
SHOWN_OF_BREACH = ("sla.breach.stage", "sla.breach.cause", "sla.breach.evidence")
VARYING = ("client.port", "network.peer.port", "server.port", "client.address", "network.peer.address")


def get(path: str, method: str = "GET", **more: Any) -> Ask:
    """Return a request by HTTP."""

    def ask(service: Service, trace: str) -> None:
        headers = {"traceparent": f"00-{trace}-{UPSTREAM}-01", **more.pop("headers", {})}
        service.client.request(method, path, headers=headers, **more)

    return ask


def disconnect(service: Service, trace: str) -> None:
    """Read the beginning of a stream, and close the connection."""
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        head = f"GET /stream?chunks=40 HTTP/1.1\r\nhost: a\r\ntraceparent: 00-{trace}-{UPSTREAM}-01\r\n\r\n"
        client.sendall(head.encode())
        client.recv(64)


def call(method: str, *messages: dict[str, Any], kind: str = "unary_unary", **more: Any) -> Ask:
    """Return a request by gRPC."""

    def ask(service: rpc.Service, trace: str) -> None:
        metadata = (("traceparent", f"00-{trace}-{UPSTREAM}-01"),)
        begun = service.begin(method, *messages, kind=kind, metadata=metadata, timeout=30, **more)
        rpc.outcome(begun, kind.endswith("stream"))

    return ask


HTTP: dict[str, Ask] = {
    "a model": get("/predict", "POST", json={"preprocess_s": 0.02, "inference_s": 0.02, "postprocess_s": 0.02}),
    "no model": get("/plain?token=secret"),
    "a body": get("/echo-length", "POST", content=b"x" * 10_000),
    "a stream": get("/stream"),
    "a stream of inferences": get("/stream-inference"),
    "an error": get("/raise"),
    "refused": get("/refuse"),
    "not found": get("/none"),
    "spans of its own": get("/current-span"),
    "a breach": get("/two-calls"),
    "an agent": get("/plain", headers={"user-agent": "a/1", "accept": "b"}),
}
GRPC: dict[str, Ask] = {
    "a model": call("Predict", {"preprocess_s": 0.02, "inference_s": 0.02}),
    "an error": call("Raise"),
    "aborted": call("Abort", {"code": "NOT_FOUND"}),
    "a code": call("SetCode"),
    "a stream": call("Count", {"to": 3, "step_s": 0.02}, kind="unary_stream"),
    "an upload": call("Sum", {"value": 1}, {"value": 2}, kind="stream_unary"),
    "both ways": call("Double", {"value": 1}, {"value": 2}, kind="stream_stream"),
    "unknown": call("None"),
    "a breach": call("Sleep", {"seconds": 0.05}),
}
SERVERS: dict[str, tuple[Callable[..., Any], dict[str, Ask]]] = {
    "uvicorn": (partial(run_service, argv=asgi_command("uvicorn", "ml")), {**HTTP, "disconnected": disconnect}),
    "hypercorn": (partial(run_service, argv=asgi_command("hypercorn", "ml")), HTTP),
    "gunicorn": (partial(run_service, argv=wsgi_command("gunicorn", "flask_ml")), HTTP),
    "werkzeug": (partial(run_service, argv=wsgi_command("werkzeug", "flask_ml")), HTTP),
    "grpc_threads": (partial(rpc.run_service, app="grpc_threads"), GRPC),
    "grpc_aio": (partial(rpc.run_service, app="grpc_aio"), GRPC),
}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, folder: Path, sink: Sink) -> Iterator[tuple[str, Any]]:
    name = request.param
    env = sink.environment(
        STAGETRACE_SLA=RPC_POLICY if name.startswith("grpc") else POLICY, OTEL_SERVICE_NAME="golden", **of_chance()
    )
    with SERVERS[name][0](folder, env=env) as running:
        for ask in SERVERS[name][1].values():  # the first request of a kind loads what the others have
            ask(running, secrets.token_hex(16))
        yield name, running


def of_chance() -> dict[str, str]:
    """Return the variables by which what a thread did is not sampled."""
    return {"STAGETRACE_STALLS": "0"}


def test_a_request_leaves_as_it_always_did(server: tuple[str, Any], sink: Sink) -> None:
    """All of one server, one after the other: a file a server."""
    name, running = server
    path = GOLDEN / f"{name}.txt"
    if WRITES:
        texts = {case: written(partial(of_request, sink, running, ask)) for case, ask in SERVERS[name][1].items()}
        path.write_text("".join(f"== {case}\n{text}" for case, text in texts.items()))
    golden = parts_of(path.read_text())
    assert golden.keys() == SERVERS[name][1].keys()
    for case, ask in SERVERS[name][1].items():
        assert at_its_best(partial(of_request, sink, running, ask), golden[case], 8) == golden[case], case


@pytest.mark.parametrize("name", ["uvicorn", "gunicorn", "grpc_threads"])
def test_of_a_service_that_samples_nothing_breaches_alone_leave(name: str, folder: Path) -> None:
    path = GOLDEN / f"{name}_unsampled.txt"
    policy = RPC_POLICY if name.startswith("grpc") else POLICY
    with run_sink() as sink:
        env = sink.environment(STAGETRACE_SLA=policy, OTEL_TRACES_SAMPLER="always_off", **of_chance())
        run, asked = SERVERS[name]
        with run(folder, env=env) as running:
            for case in ("a model", "a breach"):
                asked[case](running, secrets.token_hex(16))
            breach = partial(of_request, sink, running, asked["a breach"])
            if WRITES:
                path.write_text(written(breach))
            golden = path.read_text()
            text = at_its_best(breach, golden, 8)
        names = {span.name for span in sink.spans if span.kind == SERVER}
    assert text == golden
    assert len(names) == 1


def parts_of(text: str) -> dict[str, str]:
    """Return the text of each request of a file."""
    parts = (part.partition("\n") for part in text.split("== ")[1:])
    return {name: rest for name, _, rest in parts}


def written(request: Callable[[], str]) -> str:
    """Return the text of a request as it is on a machine that is not busy: the shortest of several."""
    return min((request() for _ in range(5)), key=len)


def of_request(sink: Sink, service: Any, ask: Ask) -> str:
    """Make a request; return its spans as text."""
    trace = secrets.token_hex(16)
    ask(service, trace)
    return as_text(sink, trace)


def as_text(sink: Sink, trace: str) -> str:
    """Return the spans of a trace as text: the entry span, its stages in order of time, what is under each."""
    sink.request(trace)
    with sink.lock:
        spans = [one for one in sink.protos if one.trace_id.hex() == trace]
    (entry,) = [one for one in spans if one.kind == SERVER]
    lines = span_lines(entry, entry.start_time_unix_nano, 0)
    return "\n".join([*lines, *under(entry, spans, 1), ""])


def under(parent: Any, spans: list[Any], depth: int) -> list[str]:
    """Return the lines of the spans under one, without the gaps between two sends that a busy machine makes stages."""
    found = []
    names: list[str] = []
    children = [one for one in spans if one.parent_span_id == parent.span_id]
    for span in sorted(children, key=lambda one: (one.start_time_unix_nano, one.end_time_unix_nano)):
        is_short = span.end_time_unix_nano - span.start_time_unix_nano < SHORT_NS
        if is_short and "network.send" in names and span.name in ("handler", "postprocess", *names[-1:]):
            continue
        names.append(span.name)
        found += [*span_lines(span, parent.start_time_unix_nano, depth), *under(span, spans, depth + 1)]
    return found


def span_lines(span: Any, since: int, depth: int) -> list[str]:
    """Return one span as text; `since` is when its parent began."""
    pad = "  " * depth
    parent = {"": "none", UPSTREAM: "caller"}.get(span.parent_span_id.hex(), "above")
    bits = [KINDS[span.kind], f"flags {span.flags:#x}", f"parent {parent}", f"status {span.status.code}"]
    bits += [f"state {span.trace_state}"] if span.trace_state else []
    bits += [f"message {span.status.message!r}"] if span.status.message else []
    dropped = span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count
    bits += [f"dropped {dropped}"] if any(dropped) else []
    assert since <= span.start_time_unix_nano <= span.end_time_unix_nano
    lines = [f"{pad}{span.name}: {', '.join(bits)}"]
    is_breach = any(one.key == "sla.breached" and one.value.bool_value for one in span.attributes)
    lines += [f"{pad}  | {line}" for line in sorted(attribute_lines(span.attributes, is_breach=is_breach))]
    for event in span.events if not is_breach else ():
        lines.append(f"{pad}  * {event.name}")
        lines += [f"{pad}    | {line}" for line in attribute_lines(event.attributes, is_breach=False)]
    lines += [f"{pad}  > link {len(span.links)}"] if span.links else []
    return lines


def attribute_lines(attributes: Any, *, is_breach: bool) -> Iterator[str]:
    for one in attributes:
        if one.key.startswith(BY_CHANCE) or (
            is_breach and one.key.startswith(OF_CAUSES) and one.key not in SHOWN_OF_BREACH
        ):
            continue
        kind = one.value.WhichOneof("value")
        value = getattr(one.value, kind) if kind else None
        if kind == "array_value":
            value = [str(part.string_value) for part in one.value.array_value.values]
        if one.key in VARYING or one.key in SHOWN_OF_BREACH[1:] or "stacktrace" in one.key:
            yield f"{one.key} <{kind}>"
        elif kind == "double_value" and one.key != "sla.threshold_ms":
            yield f"{one.key} <number>"
        else:
            yield f"{one.key} {value!r}"

"""Span trees as literals, by name; a queue with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from services import APPS
from sink import SHORT_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sink import Received, Request, Sink

    Tree = str | tuple[str, list[Any]]

T = TypeVar("T")


def whole(sink: Sink, trace_id: str, *children: str) -> Request:
    """Return a request once spans with these names are there too: other processes send them at their own time."""
    for name in set(children):
        count = children.count(name)
        sink.wait_for(lambda all_, n=name, c=count: sum(s.trace_id == trace_id and s.name == n for s in all_) >= c)  # type: ignore[misc]
    return sink.request(trace_id)


def at_its_best(look: Callable[[], T], wanted: T, tries: int = 10) -> T:
    """Return the result of `look`, repeated until it is as expected: a pause between two marks adds stages."""
    seen = look()
    for _ in range(tries - 1):
        if seen == wanted:
            break
        seen = look()
    return seen


def tree(request: Request) -> Tree:
    """Return the tree of one request, without gaps between two sends (as `Request.names`)."""
    stages: list[Received] = []
    for stage in request.stages:
        before = [one.name for one in stages]
        sending = "network.send" in before and stage.end - stage.start < SHORT_NS
        if not (sending and stage.name in ("handler", "postprocess", *before[-1:])):
            stages.append(stage)
    return request.entry.name, [_under(stage, request.others) for stage in stages]


def _under(span: Received, others: Iterable[Received]) -> Tree:
    reason = span.attributes.get("queue.reason")
    name = f"{span.name} ({reason})" if reason else span.name
    children = sorted((one for one in others if one.parent_id == span.span_id), key=lambda one: one.start)
    return (name, [_under(child, others) for child in children]) if children else name


def line_of(app: str, function: str, part: str) -> str:
    """Return the line of code of an app with this text as `sla.breach.code` has it, in the function."""
    (line,) = [at for at, text in enumerate((APPS / app).read_text().splitlines(), 1) if part in text]
    return f"{app}:{line} in {function}"


def events_of(sink: Sink, span: Received) -> dict[str, list[dict[str, Any]]]:
    """Return the attributes of a span's events by their names."""
    with sink.lock:
        (proto,) = [one for one in sink.protos if one.span_id.hex() == span.span_id]
    found: dict[str, list[dict[str, Any]]] = {}
    for event in proto.events:
        attributes = {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in event.attributes}
        found.setdefault(event.name, []).append(attributes)
    return found


def links(sink: Sink) -> dict[str, set[tuple[str, str]]]:
    """Return, by span id, the trace ids and span ids of its links."""
    with sink.lock:
        protos = list(sink.protos)
    return {
        span.span_id.hex(): {(link.trace_id.hex(), link.span_id.hex()) for link in span.links}
        for span in protos
        if span.links
    }


def batch_of(request: Request, sink: Sink, under: str = "forward") -> tuple[Received, list[Received]]:
    """Return the one inference of the batch that contains a request, and the spans under it, once `under` is there.

    Its links must lead to the request's entry span, and those of the request's inference to it.
    """
    (inference,) = [stage for stage in request.stages if stage.name == "inference"]
    sink.wait_for(lambda _: inference.span_id in links(sink))
    ((trace_id, span_id),) = links(sink)[inference.span_id]
    spans = sink.wait_for(lambda all_: any(span.span_id == span_id for span in all_))
    (batch,) = [span for span in spans if span.span_id == span_id]
    assert batch.trace_id == trace_id
    assert not batch.parent_id
    assert batch.name == "inference"
    assert (request.entry.trace_id, request.entry.span_id) in links(sink)[span_id]
    assert len(links(sink)[span_id]) == batch.attributes["ml.batch.size"] == inference.attributes["ml.batch.size"]
    assert (batch.start, batch.end) == (inference.start, inference.end)
    spans = sink.wait_for(lambda all_: any(span.trace_id == trace_id and span.name == under for span in all_))
    return batch, [span for span in spans if span.trace_id == trace_id and span.span_id != span_id]


def assert_true(truths: list[tuple[Received, list[int]]]) -> None:
    """Check that each stage lies where it happened, and in the best case has that duration."""
    for stage, (started, ended) in truths:
        assert min(stage.end, ended) - max(stage.start, started) > (ended - started) / 2, (stage, started, ended)
    assert_near([(stage.end - stage.start, ended - started) for stage, (started, ended) in truths])


def assert_near(pairs: list[tuple[float, float]]) -> None:
    """Check that the recorded value is in the best case within 2 ms or 5 % of the truth, both in nanoseconds.

    The best case counts, since a busy machine may stop a process anywhere, between its clock reading and ours too.
    """
    assert pairs
    assert min(map(_off, pairs)) <= 1, pairs


def measure(ask: Callable[[], dict[str, tuple[float, float]]], tries: int = 30) -> None:
    """Repeat until each value, by name, was once as near as `assert_near` requires."""
    best: dict[str, list[tuple[float, float]]] = {}
    for _ in range(tries):
        for name, pair in ask().items():
            best.setdefault(name, []).append(pair)
        if all(min(map(_off, pairs)) <= 1 for pairs in best.values()):
            return
    for pairs in best.values():
        assert_near(pairs)


def _off(pair: tuple[float, float]) -> float:
    recorded, truth = pair
    return abs(recorded - truth) / max(2e6, 0.05 * truth)

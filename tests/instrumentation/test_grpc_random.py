"""Hundreds of RPCs to each kind of server, drawn by chance: what is promised of every request holds of each of them."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from heavy import HEAVY
from instrumentation.grpc_client import Service, outcome, run_service
from sink import SERVER, Received, Sink, assert_tiled, request_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

RPCS = 1_000 if HEAVY else 300
AT_ONCE = 8
# By method, in milliseconds: some are kept, some broken, some either. Of a method that there is not: `_OTHER`.
WITHIN_MS = {"Predict": 2, "Sleep": 3, "Count": 4, "Sum": 1, "Double": 5}
REST_MS = 1_000
CHUNK_MS = 3  # of Count
SLA = "; ".join(
    [
        *(f"ml.Scorer/{name} within {ms}ms" for name, ms in WITHIN_MS.items() if name != "Count"),
        f"ml.Scorer/Count within {WITHIN_MS['Count']}ms first_chunk {CHUNK_MS}ms per_chunk {CHUNK_MS}ms",
        f"* within {REST_MS}ms",
    ],
)
CODES = ("NOT_FOUND", "UNAVAILABLE", "INTERNAL", "ABORTED", "PERMISSION_DENIED", "DEADLINE_EXCEEDED")
# One RPC: method, kind, messages, and whether and when its caller gives up, by a deadline or by cancelling.
Drawn = tuple[str, str, list[Any], dict[str, float]]

# What chance may leave out.
RARE: list[Drawn] = [
    ("Abort", "unary_unary", [{"code": "INTERNAL"}], {}),
    ("Nope", "unary_unary", [{}], {}),
    ("Raise", "unary_unary", [{}], {}),
    ("Sleep", "unary_unary", [{"seconds": 2}], {"deadline_s": 0.5}),
    ("Sleep", "unary_unary", [{"seconds": 2}], {"cancel_s": 0.5}),
]


def draw(chance: random.Random) -> Drawn:
    def values(most: int) -> list[Any]:
        return [{"value": number} for number in range(chance.randint(0, most))]

    seconds = chance.choice([0, 0.001, 0.004])
    drawn: list[Callable[[], Drawn]] = [
        lambda: ("Predict", "unary_unary", [{"inference_s": seconds}], {}),
        lambda: ("Predict", "unary_unary", [{chance.choice(["load_fails", "dump_fails"]): True}], {}),
        lambda: ("Sleep", "unary_unary", [{"seconds": seconds}], {}),
        lambda: ("Abort", "unary_unary", [{"code": chance.choice(CODES)}], {}),
        lambda: ("Raise", "unary_unary", [{}], {}),
        lambda: ("SetCode", "unary_unary", [{}], {}),
        lambda: ("CodeAndRaise", "unary_unary", [{}], {}),
        lambda: ("Nope", "unary_unary", [{}], {}),
        lambda: ("See", "unary_unary", [{}], {}),
        lambda: ("Count", "unary_stream", [{"to": chance.randint(0, 5), "step_s": seconds}], {}),
        lambda: ("CountAndRaise", "unary_stream", [{}], {}),
        lambda: ("CountAndAbort", "unary_stream", [{}], {}),
        lambda: ("Sum", "stream_unary", values(5), {}),
        lambda: ("Double", "stream_stream", values(8), {}),
        lambda: ("Double", "stream_stream", [*values(3), {"load_fails": True}], {}),
        lambda: ("Sleep", "unary_unary", [{"seconds": 0.02}], {"deadline_s": chance.uniform(0.001, 0.03)}),
        lambda: ("Sleep", "unary_unary", [{"seconds": 0.02}], {"cancel_s": chance.uniform(0, 0.03)}),
        lambda: ("Count", "unary_stream", [{"to": 9, "step_s": 0.002}], {"cancel_s": chance.uniform(0, 0.03)}),
        lambda: ("Double", "stream_stream", values(50), {"deadline_s": chance.uniform(0.001, 0.03)}),
    ]
    return chance.choice(drawn)()


def ask(service: Service, drawn: Drawn) -> tuple[str, Drawn, str]:
    """Make one RPC; return its trace, what it was, and the status code that its caller got."""
    method, kind, messages, gives_up = drawn
    trace_id, call = service.begin_traced(method, *messages, kind=kind, timeout=gives_up.get("deadline_s", 60))
    canceller = threading.Timer(gives_up["cancel_s"], call.cancel) if "cancel_s" in gives_up else None
    if canceller is not None:
        canceller.start()
    got = outcome(call, kind.endswith("stream"))
    if canceller is not None:
        canceller.join()
    return trace_id, drawn, got.code


@pytest.mark.heavier(f"{RPCS:,} calls")
@pytest.mark.parametrize("app", ["grpc_threads", "grpc_aio"])
def test_tiling_one_entry_span_and_verdict_hold_without_exception(app: str, sink: Sink, tmp_path: Path) -> None:
    seed = secrets.randbits(32)
    print(f"seed {seed}")  # noqa: T201 -- shown if the test fails
    chance = random.Random(seed)
    env = sink.environment(STAGETRACE_SLA=SLA, WORKERS=str(AT_ONCE))
    with run_service(tmp_path, app, env) as service:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            drawn = [*RARE, *(draw(chance) for _ in range(RPCS))]
            asked = list(pool.map(lambda one: ask(service, one), drawn))
        traces = received(sink, [one for one in asked if not may_never_arrive(one)])
        assert "This is a fault of stagetrace" not in service.log
    seen = Counter(check(traces[trace_id], drawn, code) for trace_id, drawn, code in asked if trace_id in traces)
    print(seen)  # noqa: T201
    # Else chance has drawn nothing worth its name.
    assert {"OK", "UNKNOWN", "CANCELLED", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "INTERNAL"} <= {
        code for code, _ in seen
    }
    assert {breached for _, breached in seen} == {True, False}


def may_never_arrive(asked: tuple[str, Drawn, str]) -> bool:
    """Return whether an RPC may have been given up before the server has heard of it."""
    _, (_, _, _, gives_up), code = asked
    return bool(gives_up) and code != "OK"


def received(sink: Sink, asked: list[tuple[str, Drawn, str]]) -> dict[str, list[Received]]:
    """Wait for the entry span of each RPC that must have one, and a moment for the others; return spans by trace."""
    wanted = {trace_id for trace_id, _, _ in asked}

    def arrived(spans: list[Received]) -> bool:
        return wanted <= {span.trace_id for span in spans if span.kind == SERVER}

    spans = sink.wait_for(arrived, 60)
    count = -1
    while count != len(spans):
        count = len(spans)
        time.sleep(0.5)
        spans = sink.wait_for(lambda _: True)
    traces = defaultdict(list)
    for span in spans:
        traces[span.trace_id].append(span)
    return traces


def check(spans: list[Received], drawn: Drawn, code: str) -> tuple[str, bool]:
    """Check all that is promised of one request; return its status code and whether it is a breach."""
    method, _, _, gives_up = drawn
    request = request_of(spans)
    assert_tiled(request)
    entry, attributes = request.entry, request.entry.attributes
    known = "_OTHER" if method == "Nope" else f"ml.Scorer/{method}"
    assert (entry.name, attributes["rpc.method"]) == (known, known)
    said = attributes["rpc.response.status_code"]
    if gives_up:  # who gives up may do so as the answer is on its way, or after
        assert said in {code, "OK", "CANCELLED", "DEADLINE_EXCEEDED"}, (said, code, drawn)
    else:
        assert said == code, drawn
    duration_ns, within_ms = entry.end - entry.start, WITHIN_MS.get(method, REST_MS)
    breached = broken(attributes, duration_ns / 1e6, method)
    gone = bool(gives_up) and said in ("CANCELLED", "DEADLINE_EXCEEDED")
    assert attributes.get("stagetrace.network.disconnect") == ("cancelled" if gone else None), (drawn, said)
    assert attributes.get("sla.breached") is (True if breached else None if gone else False), (drawn, duration_ns)
    assert attributes["sla.verdict"] == ("breach" if breached else "excluded" if gone else "good")
    if duration_ns > within_ms * 1_000_000:
        totals = {stage.name: request.total_ns(stage.name) for stage in request.stages}
        stage, cause = attributes["sla.breach.stage"], attributes["sla.breach.cause"]
        # That in which the cause lies, or else the one that exceeds by the most what it takes in good requests.
        assert totals[stage] > 0
        assert cause != "mixed" or totals[stage] >= max(totals.values()) - within_ms * 1_000_000
        assert attributes["sla.overrun_ms"] == pytest.approx(duration_ns / 1e6 - within_ms)
    return str(said), breached


def broken(attributes: dict[str, Any], duration_ms: float, method: str) -> bool:
    """Return whether a request broke its promise, by all that its entry span says."""
    if duration_ms > WITHIN_MS.get(method, REST_MS):
        return True
    pieces = (
        attributes.get("stagetrace.network.first_byte_ms", 0),
        attributes.get("stagetrace.network.chunk_gap.max_ms", 0),
    )
    return method == "Count" and max(pieces) > CHUNK_MS

"""The spans that each member of the reader contract holds: what every question of the suite is about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from stagetrace import semconv
from stagetrace.store import Selection
from store.feed import MS, Made, entry, recent

NASTY = "x' OR 1=1; DROP TABLE requests; --"
BASE = recent()
CODES = ("app.py:4 in predict", "app.py:41 in Model.predict", "lib/odd (1).py:4 in <lambda>", None)
CAUSES = ("unknown", "gc", "cpu_wait")
RENAMED = ("network.disconnect", semconv.NETWORK_DISCONNECT)  # as an older version recorded it, and this one
VERDICTS = "good: predict-p99 (99% over 28d); breach: predict (50% over 7d)"
MODELS = ("Ranker", "Tagger", NASTY)


def _request(number: int) -> list[Made]:
    """Return one request: entry span, stages that tile it, and a detail span."""
    start = BASE + number * 7 * MS + number
    ms = 40.0 + number % 30
    breached = (True, False, None)[number % 3]
    attributes: dict[str, Any] = {
        "http.route": ("/predict", "/rank", NASTY)[number % 5 % 3],
        "http.request.method": "POST",
        "http.response.status_code": 200 + number % 4 * 100,
        semconv.ML_MODEL_NAME: MODELS[number % 4 % 3],
        semconv.ML_MODEL_VERSION: str(1 + number % 3),
        semconv.ML_FRAMEWORK: "sklearn",
        semconv.ML_BATCH_SIZE: 1 + number % 8,
        semconv.stage_total_ms(semconv.PREPROCESS): ms / 4,
        semconv.stage_total_ms(semconv.INFERENCE): ms / 2,
        semconv.stage_total_ms("mine"): ms / 8,
        semconv.stage_total_ms("yours"): ms / 8,
        "tenant": ("blue", "it's", "")[number % 3],
        "tier": number % 2,
        "ratio": (0.5, 50.0)[number % 2],
        "paying": number % 2 == 0,
    }
    if number % 4 < 3:
        attributes[RENAMED[number // 4 % 2]] = ("client", "cancelled")[number % 5 % 2]
    if breached:
        attributes[semconv.SLA_BREACH_CAUSE] = CAUSES[number // 3 % 3]
        if (code := CODES[number // 3 % 4]) is not None:
            attributes[semconv.SLA_BREACH_CODE] = code
        attributes |= {semconv.SLA_SEGMENT: "gold, eu", semconv.SLA_OVER_BUDGET: "inference, queue"}
        attributes |= {semconv.SLA_VERDICTS: VERDICTS, semconv.SLA_DEADLINE_SOURCE: "grpc-timeout"}
    service = f"contract-{number % 2}"
    resource = {"pod": f"pod-{number % 2}", "tier": "resource", "mark": "made-by-feed"}
    made = entry(service, start, breached=breached, ms=ms, attributes=attributes, resource=resource)
    made = replace(made, status=StatusCode.ERROR if number % 10 == 0 else StatusCode.UNSET)
    middle = start + round(ms * MS / 4)
    first, second = made.stage("preprocess", start, middle), made.stage("inference", middle, made.end)
    return [made, first, second, second.child("kernel", middle, middle + MS)]


def _spans() -> list[Made]:
    made = [span for number in range(60) for span in _request(number)]
    # One trace over two services: the second one's entry span starts within the first's.
    front = made[0]
    call = front.child("GET", front.start + MS, front.start + 9 * MS, kind=SpanKind.CLIENT)
    mark = {"mark": "made-by-feed"}
    back = entry("contract-back", call.start + 1, ms=5, trace=front.trace, parent=call.span, resource=mark)
    # An attribute of the same name on another kind of span is somebody else's.
    inner = front.child("inner", front.start, front.start + MS, attributes={semconv.SLA_BREACHED: True})
    # Attributes of other types than their columns.
    odd = {"http.route": 7, "http.response.status_code": "many", semconv.ML_BATCH_SIZE: 1.5, semconv.SLA_VERDICT: True}
    bare = Made("odd", "contract-odd", BASE, BASE + 5 * MS, attributes=odd, resource=mark)
    excluded = entry("contract-back", BASE + 3200 * MS, breached=None, ms=3, resource=mark)
    excluded = replace(
        excluded,
        attributes={**excluded.attributes, semconv.SLA_VERDICT: "excluded", semconv.SLA_EXCLUDED_REASON: "rule"},
    )
    return [*made, call, back, inner, bare, OLD, *_downstream(), *_rpc(), excluded]


def _rpc() -> list[Made]:
    """Return a breached RPC that calls another service, as gRPC servers and clients are recorded."""
    made = entry("contract-back", BASE + 3000 * MS, ms=90, resource={"mark": "made-by-feed"})
    attributes = {key: value for key, value in made.attributes.items() if key != "http.route"}
    made = replace(made, name=RPC, attributes={**attributes, "rpc.method": RPC})
    other = {"rpc.method": "ml.Features/Get"}
    call = made.child("ml.Features/Get", made.start, made.end, kind=SpanKind.CLIENT, attributes=other)
    return [made, call]


def _downstream() -> list[Made]:
    """Return a breach whose slowest stage waited for another service, on whose side the time went."""
    mark = {"mark": "made-by-feed"}
    attributes = {
        semconv.stage_total_ms(semconv.INFERENCE): 0.0,
        semconv.stage_total_ms(semconv.HANDLER): 90.0,
        semconv.SLA_BREACH_STAGE: semconv.HANDLER,
        semconv.SLA_BREACH_CAUSE: "downstream",
        semconv.SLA_BREACH_PEER: "down:8001",
    }
    front = entry("contract-0", BASE + 2000 * MS, ms=90, attributes=attributes, resource=mark)
    stage = front.stage("handler", front.start, front.end)
    peer = {"server.address": "down", "server.port": 8001}
    call = stage.child("GET", front.start + MS, front.start + 81 * MS, kind=SpanKind.CLIENT, attributes=peer)
    totals = {semconv.stage_total_ms(semconv.INFERENCE): 20.0, semconv.stage_total_ms(semconv.QUEUE): 50.0}
    below: dict[str, Any] = {"trace": front.trace, "parent": call.span, "resource": mark, "attributes": totals}
    down = entry("contract-back", call.start + MS, breached=None, ms=70, **below)
    middle = down.start + 50 * MS
    stages = down.stage("queue", down.start, middle), down.stage("inference", middle, down.end)
    return [front, stage, call, down, *stages]


RPC = "ml.Scorer/Predict"
# As stock OpenTelemetry records a request by the conventions before 1.23, with a stage of which the total is whole.
OLD = Made(
    "HTTP GET",
    "contract-old",
    BASE + 4000 * MS,
    BASE + 4030 * MS,
    attributes={
        "http.method": "GET",
        "http.status_code": 503,
        "http.target": "/items/7?page=2",
        semconv.stage_total_ms("tokenize"): 12,
    },
    resource={"mark": "made-by-feed"},
)
ALL = _spans()
AGAIN = ALL[3:9]
END = BASE + 60_000 * MS
WHOLE = Selection(BASE, END)
ENTRIES = [one for one in ALL if one.kind is SpanKind.SERVER]

"""Fill the exporter's tables with realistic ML requests, which ClickHouse itself makes: an entry span and eight stages.

Services, routes, models, tenants and the 27 or so attributes of an entry span are as stagetrace records them. 2 % of
requests have a slow inference, and one service is slow for two hours of the fourth day. Ids are random, so that they
compress as real ones do. The same number is always the same request.
"""

# ruff: noqa: S608 -- constants

from __future__ import annotations

from typing import Final

START_NS: Final = 1_790_000_000_000_000_000
DAYS: Final = 7
DAY_NS: Final = 86_400 * 10**9
SPANS_PER_REQUEST: Final = 9
PER_INSERT: Final = 20_000  # requests
TWICE: Final = 20  # one insert in so many arrives a second time

_MAP: Final = "Map(LowCardinality(String), String) CODEC(ZSTD(1))"
# As clickhouseexporter 0.161.0 makes them, but without a time to live.
TABLES: Final = (
    f"""CREATE TABLE otel_traces (
        Timestamp DateTime64(9) CODEC(Delta(8), ZSTD(1)),
        TraceId String CODEC(ZSTD(1)), SpanId String CODEC(ZSTD(1)), ParentSpanId String CODEC(ZSTD(1)),
        TraceState String CODEC(ZSTD(1)), SpanName LowCardinality(String) CODEC(ZSTD(1)),
        SpanKind LowCardinality(String) CODEC(ZSTD(1)), ServiceName LowCardinality(String) CODEC(ZSTD(1)),
        ResourceAttributes {_MAP}, ScopeName String CODEC(ZSTD(1)), ScopeVersion String CODEC(ZSTD(1)),
        SpanAttributes {_MAP}, Duration UInt64 CODEC(ZSTD(1)), StatusCode LowCardinality(String) CODEC(ZSTD(1)),
        StatusMessage String CODEC(ZSTD(1)),
        `Events.Timestamp` Array(DateTime64(9)) CODEC(ZSTD(1)),
        `Events.Name` Array(LowCardinality(String)) CODEC(ZSTD(1)),
        `Events.Attributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
        `Links.TraceId` Array(String) CODEC(ZSTD(1)), `Links.SpanId` Array(String) CODEC(ZSTD(1)),
        `Links.TraceState` Array(String) CODEC(ZSTD(1)),
        `Links.Attributes` Array(Map(LowCardinality(String), String)) CODEC(ZSTD(1)),
        INDEX idx_trace_id TraceId TYPE bloom_filter(0.001) GRANULARITY 1,
        INDEX idx_res_attr_key mapKeys(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
        INDEX idx_res_attr_value mapValues(ResourceAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
        INDEX idx_span_attr_key mapKeys(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
        INDEX idx_span_attr_value mapValues(SpanAttributes) TYPE bloom_filter(0.01) GRANULARITY 1,
        INDEX idx_duration Duration TYPE minmax GRANULARITY 1
    ) ENGINE = MergeTree PARTITION BY toDate(Timestamp) ORDER BY (ServiceName, SpanName, toDateTime(Timestamp))
    SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1""",
    """CREATE TABLE otel_traces_trace_id_ts (
        TraceId String CODEC(ZSTD(1)), Start DateTime CODEC(Delta(4), ZSTD(1)), End DateTime CODEC(Delta(4), ZSTD(1)),
        INDEX idx_trace_id TraceId TYPE bloom_filter(0.01) GRANULARITY 1
    ) ENGINE = MergeTree PARTITION BY toDate(Start) ORDER BY (TraceId, Start)""",
    """CREATE MATERIALIZED VIEW otel_traces_trace_id_ts_mv TO otel_traces_trace_id_ts AS
    SELECT TraceId, min(Timestamp) AS Start, max(Timestamp) AS End FROM otel_traces
    WHERE TraceId != '' GROUP BY TraceId""",
)

_STAGES: Final = (
    *("queue", "network.receive", "preprocess", "inference"),
    *("preprocess", "inference", "postprocess", "network.send"),
)
_MS: Final = (1.5, 0.4, 2.0, 9.0, 1.0, 6.0, 1.2, 0.3)  # medians
_THRESHOLD_MS: Final = 60
_ROUTES: Final = ("/predict", "/predict/{model}", "/embed", "/rank", "/batch/score")
_MODELS: Final = ("LogisticRegression", "ranker.onnx", "classifier.onnx", "TfidfVectorizer", "embedder.onnx")


def _list(values: tuple[object, ...]) -> str:
    return str(list(values))


def _uniform(number: str, salt: str) -> str:
    return f"((cityHash64({number}, {salt}) % 999983 + 0.5) / 999983)"


def _made(first: int, requests: int, of_all: int) -> str:
    """Return the SELECT of requests before they are spans."""
    normal = f"sqrt(-2 * log({_uniform('number', 'k')})) * cos(2 * pi() * {_uniform('number', 'k + 50')})"
    incident = f"(s = 2 AND at BETWEEN {START_NS + 3 * DAY_NS} AND {START_NS + 3 * DAY_NS + DAY_NS // 12})"
    slow = f"if(k IN (4, 6), multiIf({incident}, 3.5, {_uniform('number', '7')} < 0.02, 8, 1), 1)"
    return f"""
    SELECT
        number AS n, lower(hex(sipHash128(number, 1))) AS trace, cityHash64(number, 2) % 6 AS s,
        intDiv({DAYS * DAY_NS}, {of_all}) * number + {START_NS} + cityHash64(number, 3) % 2000000 AS at,
        lower(leftPad(hex(sipHash64(number, 4)), 16, '0')) AS entry,
        {_list(_ROUTES)}[1 + cityHash64(number, 5) % {len(_ROUTES)}] AS route,
        {_list(_MODELS)}[1 + cityHash64(number, 6) % {len(_MODELS)}] AS model,
        concat(toString(1 + s % 3), '.', toString(if(at > {START_NS + 5 * DAY_NS}, 1, 0)), '.0') AS version,
        toString(1 + cityHash64(number, 8) % 64) AS batch,
        arrayMap(k -> toInt64({_list(_MS)}[k] * exp(0.5 * {normal}) * {slow} * 1e6), range(1, 9)) AS took,
        map('service.name', concat('service-', toString(s)), 'service.version', '1.4.2',
            'service.instance.id', lower(hex(sipHash128(s, cityHash64(number, 9) % 8))),
            'host.name', concat('node-', toString(cityHash64(number, 9) % 8), '.example'),
            'deployment.environment.name', 'production', 'cloud.region', ['eu-west-1', 'us-east-1'][1 + s % 2],
            'telemetry.sdk.name', 'opentelemetry', 'telemetry.sdk.language', 'python',
            'telemetry.sdk.version', '1.45.2') AS resource
    FROM numbers({first}, {requests})"""


def _totals() -> dict[str, str]:
    """Return stage -> expression of its total in ns."""
    found: dict[str, list[str]] = {}
    for place, stage in enumerate(_STAGES, 1):
        found.setdefault(stage, []).append(f"took[{place}]")
    return {stage: f"({' + '.join(parts)})" for stage, parts in found.items()}


def _entries(made: str) -> str:
    totals = _totals()
    names = [f"'{stage}'" for stage in totals]
    inference = f"{totals['inference']} / 1e6"
    stages = ", ".join(f"'ml.stage.{stage}.ms', toString({total} / 1e6)" for stage, total in totals.items())
    worst = f"[{', '.join(names)}][indexOf(all_, arrayMax(all_))]"
    attributes = f"""map(
        'http.request.method', 'POST', 'http.route', route, 'http.response.status_code', '200', 'url.scheme', 'https',
        'url.path', replaceOne(route, '{{model}}', model), 'network.protocol.version', '1.1',
        'server.address', 'api.example', 'server.port', '8000',
        'client.address', concat('10.0.', toString(cityHash64(n, 10) % 8), '.', toString(cityHash64(n, 11) % 250)),
        'client.port', toString(1024 + cityHash64(n, 12) % 64000), 'user_agent.original', 'python-httpx/0.28.1',
        'http.request.body.size', toString(toInt64(400 * exp(3 * {_uniform("n", "13")}))),
        'tenant.id', concat('tenant-', toString(toInt64(200 * pow({_uniform("n", "14")}, 3)))),
        'ml.model.name', model, 'ml.model.version', version, 'ml.framework', 'onnxruntime', 'ml.batch.size', batch,
        {stages}, 'sla.breached', if(late, 'true', 'false'), 'sla.verdict', if(late, 'breach', 'good'),
        'sla.objective', concat('POST ', route, ' within {_THRESHOLD_MS}ms for 99%'), 'sla.target', '0.99',
        'sla.threshold_ms', '{_THRESHOLD_MS}', 'stagetrace.process.cpu_ms', toString(round({inference} * 0.8, 3)))"""
    breach = f"""map(
        'sla.overrun_ms', toString(whole / 1e6 - {_THRESHOLD_MS}),
        'sla.severity', if(whole > 12e7, 'critical', 'major'),
        'sla.breach.stage', worst, 'sla.breach.cause', if(s = 2, 'cpu_contention', 'compute'),
        'sla.breach.code',
        if(s = 2, '', concat('predict (serve/', replaceAll(model, '.', '_'), '.py:', toString(10 + s), ')')),
        'sla.breach.evidence', concat(worst, ' took ', toString(round({inference}, 1)), ' ms of ',
            toString(round(whole / 1e6, 1)), ' ms'))"""
    return f"""
    SELECT fromUnixTimestamp64Nano(toInt64(at)) AS Timestamp, trace AS TraceId, entry AS SpanId, '' AS ParentSpanId,
        concat('POST ', route) AS SpanName, 'Server' AS SpanKind, concat('service-', toString(s)) AS ServiceName,
        resource AS ResourceAttributes, 'stagetrace' AS ScopeName, '0.1.0' AS ScopeVersion,
        CAST(if(late, mapConcat(normal, {breach}), normal) AS Map(LowCardinality(String), String)) AS SpanAttributes,
        toUInt64(whole) AS Duration, 'Unset' AS StatusCode
    FROM (SELECT *, {attributes} AS normal FROM (
        SELECT *, arraySum(took) AS whole, whole > {_THRESHOLD_MS}e6 AS late,
            [{", ".join(totals.values())}] AS all_, {worst} AS worst
        FROM ({made})))"""


def _stage_spans(made: str) -> str:
    extra = "map('ml.stage', stage, 'ml.model.name', model, 'ml.framework', 'onnxruntime', 'ml.batch.size', batch)"
    return f"""
    SELECT fromUnixTimestamp64Nano(toInt64(at + arraySum(arraySlice(took, 1, k - 1)))) AS Timestamp, trace AS TraceId,
        lower(leftPad(hex(sipHash64(n, k)), 16, '0')) AS SpanId, entry AS ParentSpanId, stage AS SpanName,
        'Internal' AS SpanKind, concat('service-', toString(s)) AS ServiceName, resource AS ResourceAttributes,
        'stagetrace' AS ScopeName, '0.1.0' AS ScopeVersion,
        CAST(if(stage = 'inference', {extra}, map('ml.stage', stage)) AS Map(LowCardinality(String), String))
            AS SpanAttributes,
        toUInt64(took[k]) AS Duration, 'Unset' AS StatusCode
    FROM (SELECT *, k, {_list(_STAGES)}[k] AS stage FROM ({made}) ARRAY JOIN range(1, 9) AS k)"""


def insert(first: int, requests: int, of_all: int) -> str:
    """Return the INSERT of some requests, of which there are `of_all` within the days."""
    made = _made(first, requests, of_all)
    columns = (
        "Timestamp, TraceId, SpanId, ParentSpanId, SpanName, SpanKind, ServiceName, ResourceAttributes, ScopeName, "
        "ScopeVersion, SpanAttributes, Duration, StatusCode"
    )
    return f"INSERT INTO otel_traces ({columns}) {_entries(made)} UNION ALL {_stage_spans(made)}"

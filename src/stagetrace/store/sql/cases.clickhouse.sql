-- As for DuckDB; by another hash, so that others come.
SELECT
    trace_id, span_id, service, path, start_unix_nano, duration_ms, weight, overrun_ms, stage, cause, code, model,
    model_version, framework, mapKeys(stages) AS stage_names, mapValues(stages) AS stage_ms,
    toJSONString(attributes) AS attributes, toJSONString({resource}) AS resource, marked
FROM (
    SELECT
        *, CAST(
            multiIf({kind:UInt8} = 0, coalesce(breached, false), {kind:UInt8} = 1, (
                start_unix_nano >= {box_since:Int64} AND start_unix_nano < {box_until:Int64}
                AND duration_ms >= {box_least:Float64} AND duration_ms < {box_most:Float64}
            ), false) AS Bool
        ) AS marked
    FROM {requests}
    WHERE {kind:UInt8} != 0 OR breached IS NOT NULL
)
WHERE (marked AND cityHash64(span_id) <= {marked_below:UInt64}) OR (NOT marked AND cityHash64(span_id) <= {below:UInt64})
LIMIT {most:UInt32}

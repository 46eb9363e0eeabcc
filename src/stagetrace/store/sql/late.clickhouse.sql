-- As for DuckDB.
SELECT
    trace_id, span_id, service, name, route, start_unix_nano, end_unix_nano, threshold_ms, overrun_ms, objective, stage, severity,
    cause, evidence, code, model, missed, {each parts, : {column} end}
FROM {requests}
WHERE breached
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT {most:UInt64}

-- As for DuckDB.
SELECT trace_id, span_id, start_unix_nano, duration_ms
FROM {requests}
WHERE duration_ms BETWEEN {low:Float64} AND {high:Float64}
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT {most:UInt32}

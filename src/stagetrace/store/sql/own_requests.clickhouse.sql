-- As for DuckDB.
SELECT
    {by} trace_id, start_unix_nano, duration_ms, mapKeys(stages) AS stage_names, mapValues(stages) AS stages_ms
FROM {requests}
WHERE startsWith(trace_id, {prefix:String})
ORDER BY start_unix_nano, trace_id, span_id
LIMIT {most:UInt64}

-- As for DuckDB.
SELECT trace_id, service, name
FROM {spans}
WHERE ({service:Nullable(String)} IS NULL OR service = {service:Nullable(String)}) AND (
    parent_span_id IS NULL
    OR (trace_id, assumeNotNull(parent_span_id)) GLOBAL NOT IN (SELECT trace_id, span_id FROM {spans})
)
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT 1

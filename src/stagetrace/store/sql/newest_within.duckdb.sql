-- The newest requests whose duration is within [low, high] ms, at most `most`.
SELECT trace_id, span_id, start_unix_nano, duration_ms
FROM {requests}
WHERE duration_ms BETWEEN $low AND $high
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT $most

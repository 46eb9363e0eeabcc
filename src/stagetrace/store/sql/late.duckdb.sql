-- The newest breaches, at most `most`. When they began is asked first, so that only these are read whole.
WITH newest AS (
    SELECT start_unix_nano FROM {requests} WHERE breached ORDER BY start_unix_nano DESC LIMIT $most
)
SELECT
    trace_id, span_id, service, name, route, start_unix_nano, end_unix_nano, threshold_ms, overrun_ms, objective, stage, severity,
    cause, evidence, code, model, missed, {each parts, : {column} end}
FROM {requests}
WHERE breached AND start_unix_nano >= (SELECT min(start_unix_nano) FROM newest)
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT $most

-- The newest requests whose duration is within [low, high] ms, at most `most`. When they began is asked first: to put ids in
-- order of all that are within would take five times as long.
WITH within_band AS (
    SELECT trace_id, span_id, start_unix_nano, duration_ms FROM {requests} WHERE duration_ms BETWEEN $low AND $high
),
newest AS (
    SELECT start_unix_nano FROM within_band ORDER BY start_unix_nano DESC LIMIT $most
)
FROM within_band
WHERE start_unix_nano >= (SELECT min(start_unix_nano) FROM newest)
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT $most

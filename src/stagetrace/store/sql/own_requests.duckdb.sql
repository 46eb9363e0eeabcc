-- The requests of one run of `stagetrace bench`, whose trace ids have a common beginning, with their stages: at most `most`.
SELECT
    {by} trace_id, start_unix_nano, duration_ms, map_keys(stages) AS stage_names, map_values(stages) AS stages_ms
FROM {requests}
WHERE starts_with(trace_id, $prefix)
ORDER BY start_unix_nano, trace_id, span_id
LIMIT $most

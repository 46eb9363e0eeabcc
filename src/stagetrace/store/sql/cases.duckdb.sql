-- Requests with all that may distinguish them: breaches (`verdict` 1), judged ones that are none (0), or any (2); each with
-- probability `below` / 2^64, by its id, so that the same come each time; at most `most`. Maps come as two lists, which are
-- the same with each engine. A plain comparison is what DuckDB does before it decodes attributes; with % it decodes all.
SELECT
    trace_id, span_id, service, path, start_unix_nano, duration_ms, weight, overrun_ms, stage, cause, model, model_version,
    framework, map_keys(stages) AS stage_names, map_values(stages) AS stage_ms, map_keys(attributes) AS keys,
    map_values(attributes) AS texts, map_keys(resource) AS resource_keys, map_values(resource) AS resource_texts
FROM (
    SELECT *, {resource} AS resource
    FROM {requests}
    WHERE ($verdict = 2 OR breached = ($verdict = 1)) AND hash(span_id) <= $below::UBIGINT
)
LIMIT $most

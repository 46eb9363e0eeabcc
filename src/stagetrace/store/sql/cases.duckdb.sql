-- Requests with all that may distinguish them, of two kinds: with `kind` 0 breaches (`marked`) and judged ones that are none, with
-- 1 those in a box of when they began (ns) and how long they took (ms) and all others; with 2 all are of the second kind. Each of
-- them comes with probability `marked_below` or `below` / 2^64, by its id and start, so that the same come each time; at most `most`.
-- Attributes come as JSON, which takes half the time of maps or lists. Plain comparisons are what DuckDB does before it decodes
-- attributes; with % or CASE it decodes all. Where the result has an order of its own, and the condition two columns (one of one
-- column is a part of the scan), DuckDB puts the few rows of each part of a scan together before it decodes attributes: a third
-- of the time over ten million requests.
SELECT
    trace_id, span_id, service, path, start_unix_nano, duration_ms, weight, overrun_ms, stage, cause, code, model,
    model_version, framework, map_keys(stages) AS stage_names, map_values(stages) AS stage_ms,
    to_json(attributes)::VARCHAR AS attributes, to_json(resource)::VARCHAR AS resource,
    coalesce(
        ($kind = 0 AND breached) OR ($kind = 1 AND (
            start_unix_nano >= $box_since AND start_unix_nano < $box_until
            AND duration_ms >= $box_least AND duration_ms < $box_most
        )), false
    ) AS marked
FROM (
    SELECT *, {resource} AS resource
    FROM {requests}
    WHERE (
        hash(span_id, start_unix_nano) <= $marked_below::UBIGINT AND (
            ($kind = 0 AND breached) OR ($kind = 1 AND (
                start_unix_nano >= $box_since AND start_unix_nano < $box_until
                AND duration_ms >= $box_least AND duration_ms < $box_most
            ))
        )
    ) OR (
        hash(span_id, start_unix_nano) <= $below::UBIGINT AND (
            ($kind = 0 AND NOT breached) OR $kind = 2 OR ($kind = 1 AND NOT (
                start_unix_nano >= $box_since AND start_unix_nano < $box_until
                AND duration_ms >= $box_least AND duration_ms < $box_most
            ))
        )
    )
)
ORDER BY span_id
LIMIT $most

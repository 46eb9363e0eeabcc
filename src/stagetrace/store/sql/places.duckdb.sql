-- The requests in order of a value, greatest first, those without one last: at most `most`, behind a place where `is_behind`.
SELECT trace_id, span_id, service, start_unix_nano
FROM {requests}
WHERE (NOT $breached OR breached)
    AND (
        NOT $is_behind
        OR ($value IS NOT NULL AND ({value} < $value OR {value} IS NULL))
        OR (
            {value} IS NOT DISTINCT FROM $value
            AND (
                start_unix_nano < $start_unix_nano
                OR (start_unix_nano = $start_unix_nano AND (trace_id, span_id) > ($trace_id, $span_id))
            )
        )
    )
ORDER BY {value} DESC NULLS LAST, start_unix_nano DESC, trace_id, span_id
LIMIT $most

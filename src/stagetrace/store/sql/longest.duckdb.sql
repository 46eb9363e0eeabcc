-- The requests that took longest, at most `most`: with `kind` 0 breaches, with 1 those in a box, as `cases` has it.
SELECT trace_id, span_id, service, path, start_unix_nano, duration_ms, breached, stage, cause
FROM {requests}
WHERE ($kind = 0 AND breached) OR (
    $kind = 1 AND start_unix_nano >= $box_since AND start_unix_nano < $box_until
    AND duration_ms >= $box_least AND duration_ms < $box_most
)
ORDER BY duration_ms DESC, span_id
LIMIT $most

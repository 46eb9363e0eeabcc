-- Whole requests, by their ids; none of them began outside [first, last].
SELECT {by} {columns}
FROM {requests}
WHERE start_unix_nano BETWEEN $first AND $last AND list_contains($ids, span_id)

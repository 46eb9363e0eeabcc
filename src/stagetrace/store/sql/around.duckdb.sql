-- The requests that began from `since` on, and of those before only what was in flight at `began`: the newest first, at most
-- `most`. The selection has both ends of the time.
SELECT
    {by} trace_id, span_id, name, route, method, url_path, request_bytes, start_unix_nano, end_unix_nano, weight
FROM {requests}
WHERE start_unix_nano >= $since OR end_unix_nano > $began
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT $most

-- As for DuckDB.
SELECT
    {by} trace_id, span_id, name, route, method, url_path, request_bytes, start_unix_nano, end_unix_nano, weight
FROM {requests}
WHERE start_unix_nano >= {since:Int64} OR end_unix_nano > {began:Int64}
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT {most:UInt64}

-- As for DuckDB.
SELECT {by} start_unix_nano, weight
FROM {requests}
ORDER BY start_unix_nano, span_id
LIMIT {most:UInt64}

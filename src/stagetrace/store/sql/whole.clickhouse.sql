-- As for DuckDB.
SELECT {by} {columns}
FROM {requests}
WHERE start_unix_nano BETWEEN {first:Int64} AND {last:Int64} AND has({ids:Array(String)}, span_id)

-- As for DuckDB.
SELECT {by} {columns}
FROM {requests}
WHERE start_unix_nano BETWEEN {first:Int64} AND {last:Int64} AND span_id IN {ids:Array(String)}

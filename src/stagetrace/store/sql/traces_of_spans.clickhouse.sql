-- As for DuckDB; by another hash, so that others come.
SELECT DISTINCT trace_id
FROM {spans}
ORDER BY cityHash64(trace_id), trace_id
LIMIT {most:UInt32}

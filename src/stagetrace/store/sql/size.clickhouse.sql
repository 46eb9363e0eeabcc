-- As for DuckDB.
SELECT count() AS stored
FROM (SELECT 1 FROM {requests} LIMIT {most:UInt64})

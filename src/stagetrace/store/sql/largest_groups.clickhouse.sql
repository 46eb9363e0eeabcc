-- As for DuckDB.
SELECT *, count() OVER () AS groups
FROM (SELECT {by} count() AS stored FROM {requests} GROUP BY ALL)
ORDER BY stored DESC
LIMIT {most:UInt32}

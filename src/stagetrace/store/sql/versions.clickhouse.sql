-- As for DuckDB.
SELECT {by} sum(weight) AS requests, min(start_unix_nano) AS first, max(start_unix_nano) AS last
FROM {requests}
GROUP BY ALL
ORDER BY requests DESC
LIMIT 1000

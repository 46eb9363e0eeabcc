-- As for DuckDB.
SELECT
    {by} sum(weight) AS requests, count() AS stored, min(start_unix_nano) AS first_unix_nano,
    max(start_unix_nano) AS last_unix_nano, sum(if(duration_ms < 0, 1, 0)) AS negative,
    {sampled} AS sampled, {unknown} AS unknown,
    min(threshold_ms) AS within_ms
FROM {requests}
GROUP BY ALL

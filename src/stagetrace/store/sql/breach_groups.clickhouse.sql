-- As for DuckDB.
SELECT *, count() OVER () AS groups
FROM (
    SELECT
        service, path, stage, cause, code, count() AS breaches, min(start_unix_nano) AS first_unix_nano,
        max(start_unix_nano) AS last_unix_nano, quantileExactInclusive(0.5)(overrun_ms) AS median_overrun_ms,
        max(overrun_ms) AS worst_overrun_ms, coalesce(sum(overrun_ms), 0) AS lost_ms,
        argMax(trace_id, (coalesce(overrun_ms, 0), -start_unix_nano, trace_id)) AS worst_trace_id
    FROM {requests}
    WHERE breached
    GROUP BY service, path, stage, cause, code
)
ORDER BY breaches DESC, last_unix_nano DESC, service, path, stage NULLS LAST, cause NULLS LAST, code NULLS LAST
LIMIT {most:UInt64}

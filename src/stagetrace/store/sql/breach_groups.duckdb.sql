-- Breaches that are alike: of one service, `path`, stage, cause and line of code. How many they are, the first and the last
-- start, by how much they were over what was allowed (`lost_ms`: in all), and the trace of the worst. At most `most` come, the largest ones, of `groups`.
SELECT
    service, path, stage, cause, code, count(*) AS breaches, min(start_unix_nano) AS first_unix_nano,
    max(start_unix_nano) AS last_unix_nano, quantile_cont(overrun_ms, 0.5) AS median_overrun_ms,
    max(overrun_ms) AS worst_overrun_ms, coalesce(sum(overrun_ms), 0) AS lost_ms,
    arg_max(trace_id, (coalesce(overrun_ms, 0), -start_unix_nano, trace_id)) AS worst_trace_id, count(*) OVER () AS groups
FROM {requests}
WHERE breached
GROUP BY ALL
ORDER BY breaches DESC, last_unix_nano DESC, service, path, stage NULLS LAST, cause NULLS LAST, code NULLS LAST
LIMIT $most

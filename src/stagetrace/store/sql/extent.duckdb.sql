-- From when to when each group has requests, how many, what their sampling lets be said, and the tightest objective (ms).
SELECT
    {by} sum(weight) AS requests, count(*) AS stored, min(start_unix_nano) AS first_unix_nano,
    max(start_unix_nano) AS last_unix_nano, coalesce(sum(CASE WHEN duration_ms < 0 THEN 1 ELSE 0 END), 0) AS negative,
    {sampled} AS sampled, {unknown} AS unknown,
    min(threshold_ms) AS within_ms
FROM {requests}
GROUP BY ALL

-- As for DuckDB. A sum of no row is NULL where the column may be, and not 0.
WITH counted AS (
    SELECT
        {by} toInt64(arrayCount(cut -> cut <= start_unix_nano, {cuts:Array(Int64)})) AS band, sum(weight) AS requests,
        coalesce(sumIf(weight, NOT breached), 0) AS good,
        coalesce(sumIf(weight, breached), 0) AS breaches,
        coalesce(sumIf(weight, breached IS NULL AND verdict = 'excluded'), 0) AS excluded,
        coalesce(sumIf(weight, is_shown), 0) AS once,
        coalesce(sumIf(weight, is_excluded AND excluded_reason = 'rule'), 0) AS by_rule,
        coalesce(sumIf(weight, is_excluded AND excluded_reason = 'warmup'), 0) AS by_warmup,
        coalesce(sumIf(weight, is_excluded AND excluded_reason = 'error'), 0) AS by_error,
        coalesce(sumIf(weight, is_excluded AND excluded_reason = 'disconnect'), 0) AS by_disconnect,
        coalesce(
            sumIf(
                weight, is_excluded AND coalesce(excluded_reason NOT IN ('rule', 'warmup', 'error', 'disconnect'), true)
            ),
            0
        ) AS by_others,
        coalesce(sumIf(weight * (weight - 1), NOT breached), 0) AS spread,
        coalesce(1 / minIf(sampling_probability, sampling_probability > 0), 1) AS most,
        toInt64(count()) AS stored,
        {sampled} AS sampled, {unknown} AS unknown,
        min(start_unix_nano) AS first_unix_nano, max(start_unix_nano) AS last_unix_nano
    FROM (SELECT *, is_shown AND isNull(breached) AND verdict = 'excluded' AS is_excluded FROM {verdicts})
    GROUP BY ALL
),
summed AS (
    SELECT
        *, sum(breaches) OVER (PARTITION BY {by} true) AS all_breaches,
        sum(requests) OVER (PARTITION BY {by} true) AS all_requests
    FROM counted
),
ranked AS (
    SELECT *, dense_rank() OVER (ORDER BY all_breaches DESC, all_requests DESC, {by} true) AS place FROM summed
),
measured AS (SELECT *, max(place) OVER () AS groups FROM ranked)
SELECT
    {by} band, requests, good, breaches, excluded, once, by_rule, by_warmup, by_error, by_disconnect, by_others, spread, most,
    stored, sampled, unknown, first_unix_nano, last_unix_nano, groups
FROM measured
WHERE place <= {most:UInt32}

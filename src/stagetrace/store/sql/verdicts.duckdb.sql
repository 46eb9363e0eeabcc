-- Of each group and band: what became of its requests, as `counts` has it, under each objective that judged them. `once`
-- counts a request in one group alone, that of the objective that its entry span shows; so do `by_...`, which are the excluded
-- ones by the recorded reason. The bands lie between `cuts`, times in ns: band 0 before the first of them, band 1 from it on.
-- At most `most` groups come, those with the most breaches, of `groups`.
WITH counted AS (
    SELECT
        {by} len(list_filter($cuts::BIGINT[], lambda cut: cut <= start_unix_nano)) AS band, sum(weight) AS requests,
        coalesce(sum(weight) FILTER (WHERE NOT breached), 0) AS good,
        coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches,
        coalesce(sum(weight) FILTER (WHERE breached IS NULL AND verdict = 'excluded'), 0) AS excluded,
        coalesce(sum(weight) FILTER (WHERE is_shown), 0) AS once,
        coalesce(sum(weight) FILTER (WHERE is_excluded AND excluded_reason = 'rule'), 0) AS by_rule,
        coalesce(sum(weight) FILTER (WHERE is_excluded AND excluded_reason = 'warmup'), 0) AS by_warmup,
        coalesce(sum(weight) FILTER (WHERE is_excluded AND excluded_reason = 'error'), 0) AS by_error,
        coalesce(sum(weight) FILTER (WHERE is_excluded AND excluded_reason = 'disconnect'), 0) AS by_disconnect,
        coalesce(
            sum(weight) FILTER (
                WHERE is_excluded AND coalesce(excluded_reason NOT IN ('rule', 'warmup', 'error', 'disconnect'), true)
            ),
            0
        ) AS by_others,
        coalesce(sum(weight * (weight - 1)) FILTER (WHERE NOT breached), 0) AS spread,
        coalesce(1 / min(sampling_probability) FILTER (WHERE sampling_probability > 0), 1) AS most,
        count(*) AS stored,
        {sampled} AS sampled, {unknown} AS unknown,
        min(start_unix_nano) AS first_unix_nano, max(start_unix_nano) AS last_unix_nano
    FROM (SELECT *, is_shown AND breached IS NULL AND verdict = 'excluded' AS is_excluded FROM {verdicts})
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
WHERE place <= $most

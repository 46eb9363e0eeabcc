-- Of each group and band: what became of its requests, as `counts` has it. The bands lie between `cuts`, times in ns: band 0
-- before the first of them, band 1 from it on. At most `most` groups come, those with the most breaches, of `groups`.
WITH counted AS (
    SELECT
        {by} len(list_filter($cuts::BIGINT[], lambda cut: cut <= start_unix_nano)) AS band, sum(weight) AS requests,
        coalesce(sum(weight) FILTER (WHERE NOT breached), 0) AS good,
        coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches,
        coalesce(sum(weight) FILTER (WHERE breached IS NULL AND verdict = 'excluded'), 0) AS excluded,
        coalesce(sum(weight * (weight - 1)) FILTER (WHERE NOT breached), 0) AS spread,
        coalesce(1 / min(sampling_probability) FILTER (WHERE sampling_probability > 0), 1) AS most,
        count(*) AS stored,
        bool_or(sampling_probability IS NOT NULL OR coalesce(upgraded, false)) AS sampled,
        bool_or(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false)) AS unknown,
        min(start_unix_nano) AS first_unix_nano, max(start_unix_nano) AS last_unix_nano
    FROM {requests}
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
    {by} band, requests, good, breaches, excluded, spread, most, stored, sampled, unknown, first_unix_nano,
    last_unix_nano, groups
FROM measured
WHERE place <= $most

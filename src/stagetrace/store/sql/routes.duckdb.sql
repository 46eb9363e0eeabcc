-- Of each group: how many requests, how fast they were and how many missed the objective. Counts are sums of weights; `good`
-- to `unknown` are what `estimates` asks for.
SELECT
    {by} requests, good + breaches AS judged, breaches, errors, quantiles, max_ms, good, spread,
    coalesce(1 / least_probability, 1) AS most, stored, sampled,
    sampled AND (least_probability IS NULL OR unknown) AS unknown, uneven
FROM (
    -- One list of quantiles: apart, each would keep all the values.
    SELECT
        {by} sum(weight) AS requests,
        coalesce(sum(weight) FILTER (WHERE NOT breached), 0) AS good,
        coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches,
        coalesce(sum(weight) FILTER (WHERE status = 'ERROR' OR http_status >= 500), 0) AS errors,
        quantile_cont(duration_ms, [0.5, 0.99]) AS quantiles, max(duration_ms) AS max_ms,
        coalesce(sum(weight * (weight - 1)) FILTER (WHERE NOT breached), 0) AS spread,
        min(sampling_probability) FILTER (WHERE sampling_probability > 0) AS least_probability, count(*) AS stored,
        {sampled} AS sampled, {unknown} AS unknown,
        min(weight) < max(weight) AS uneven
    FROM {verdicts}
    GROUP BY ALL
)

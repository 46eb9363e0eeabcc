-- How many requests there are of each group, by weight, and what became of them. `good` to `unknown` are what `estimates` asks for.
SELECT
    {by} sum(weight) AS requests, coalesce(sum(weight) FILTER (WHERE NOT breached), 0) AS good,
    coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches,
    coalesce(sum(weight) FILTER (WHERE verdict = 'excluded'), 0) AS excluded,
    coalesce(sum(weight * (weight - 1)) FILTER (WHERE NOT breached), 0) AS spread,
    coalesce(1 / min(sampling_probability) FILTER (WHERE sampling_probability > 0), 1) AS most,
    count(*) AS stored,
    {sampled} AS sampled, {unknown} AS unknown,
    min(weight) < max(weight) AS uneven
FROM {requests}
GROUP BY ALL

-- As for DuckDB. A sum of no row is NULL where the column may be, and not 0.
SELECT
    {by} sum(weight) AS requests, coalesce(sumIf(weight, NOT breached), 0) AS good,
    coalesce(sumIf(weight, breached), 0) AS breaches, coalesce(sumIf(weight, verdict = 'excluded'), 0) AS excluded,
    coalesce(sumIf(weight * (weight - 1), NOT breached), 0) AS spread,
    coalesce(1 / minIf(sampling_probability, sampling_probability > 0), 1) AS most,
    count() AS stored,
    {sampled} AS sampled, {unknown} AS unknown,
    min(weight) < max(weight) AS uneven
FROM {requests}
GROUP BY ALL

-- As for DuckDB. A sum of no row is NULL where the column may be, and not 0.
SELECT
    {by} requests, good + breaches AS judged, breaches, errors, quantiles, max_ms, good, spread,
    coalesce(1 / least_probability, 1) AS most, stored, sampled,
    sampled AND (isNull(least_probability) OR unsure) AS unknown, uneven
FROM (
    SELECT
        {by} sum(weight) AS requests,
        coalesce(sumIf(weight, NOT breached), 0) AS good,
        coalesce(sumIf(weight, breached), 0) AS breaches,
        coalesce(sumIf(weight, coalesce(status = 'ERROR', false) OR coalesce(http_status >= 500, false)), 0) AS errors,
        quantilesExactInclusive(0.5, 0.99)(duration_ms) AS quantiles, max(duration_ms) AS max_ms,
        coalesce(sumIf(weight * (weight - 1), NOT breached), 0) AS spread,
        minIf(sampling_probability, sampling_probability > 0) AS least_probability, count() AS stored,
        {sampled} AS sampled, {unknown} AS unsure,
        min(weight) < max(weight) AS uneven
    FROM {verdicts}
    GROUP BY ALL
)

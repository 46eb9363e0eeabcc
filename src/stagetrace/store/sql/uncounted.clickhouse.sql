-- As for DuckDB. A sum of no row is NULL where the column may be, and not 0.
SELECT
    {by} coalesce(sumIf(weight, verdict = 'good'), 0) AS good,
    coalesce(sumIf(weight, verdict = 'breach'), 0) AS breaches,
    coalesce(sumIf(weight, verdict = 'excluded'), 0) AS excluded,
    coalesce(sumIf(weight * (weight - 1), verdict = 'good'), 0) AS spread,
    coalesce(1 / minIf(sampling_probability, sampling_probability > 0), 1) AS most
FROM {verdicts}
WHERE service = {service:String} AND (end_unix_nano < {since_ns:Int64} OR end_unix_nano >= {until_ns:Int64})
    AND isNotNull(objective)
GROUP BY ALL

-- Of one service: requests that ended outside of [since_ns, until_ns), as `routes` counts them.
SELECT
    {by} coalesce(sum(weight) FILTER (WHERE verdict = 'good'), 0) AS good,
    coalesce(sum(weight) FILTER (WHERE verdict = 'breach'), 0) AS breaches,
    coalesce(sum(weight) FILTER (WHERE verdict = 'excluded'), 0) AS excluded,
    coalesce(sum(weight * (weight - 1)) FILTER (WHERE verdict = 'good'), 0) AS spread,
    coalesce(1 / min(sampling_probability) FILTER (WHERE sampling_probability > 0), 1) AS most
FROM {verdicts}
WHERE service = $service AND (end_unix_nano < $since_ns OR end_unix_nano >= $until_ns) AND objective IS NOT NULL
GROUP BY ALL

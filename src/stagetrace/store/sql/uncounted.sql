-- Of one service, by route and objective: requests that ended outside of [since, until), as `routes` counts them.
SELECT
    coalesce(route, name) AS path, objective, coalesce(sum(weight) FILTER (WHERE verdict = 'good'), 0) AS good,
    coalesce(sum(weight) FILTER (WHERE verdict = 'breach'), 0) AS breaches,
    coalesce(sum(weight) FILTER (WHERE verdict = 'excluded'), 0) AS excluded,
    coalesce(sum(weight * (weight - 1)) FILTER (WHERE verdict = 'good'), 0) AS spread,
    coalesce(1 / min(sampling_probability) FILTER (WHERE sampling_probability > 0), 1) AS most
FROM requests
WHERE service = $1 AND (end_unix_nano < $2 OR end_unix_nano >= $3) AND objective IS NOT NULL
GROUP BY path, objective

-- As for DuckDB.
SELECT
    {by} own, sum(weight) AS requests, quantilesExactInclusive(0.5, 0.95, 0.99)(taken.ms) AS quantiles,
    max(taken.ms) AS max_ms, sum(weight * taken.ms) AS total_ms
FROM (
    SELECT {by} weight, own, ms
    FROM (SELECT * FROM {requests} WHERE isNotNull(other_ms)) ARRAY JOIN mapKeys(stages) AS own, mapValues(stages) AS ms
) AS taken
WHERE own NOT IN ({each stages, : '{stage}' end})
GROUP BY ALL

-- As `stages`, a row for each of the stages that a program defined itself, which have no columns.
SELECT
    {by} own, sum(weight) AS requests, quantile_cont(ms, [0.5, 0.95, 0.99]) AS quantiles, max(ms) AS max_ms,
    sum(weight * ms) AS total_ms
FROM (
    SELECT {by} weight, one.key AS own, one.value AS ms
    FROM (SELECT *, unnest(map_entries(stages)) AS one FROM {requests} WHERE other_ms IS NOT NULL)
)
WHERE own NOT IN ({each stages, : '{stage}' end})
GROUP BY ALL

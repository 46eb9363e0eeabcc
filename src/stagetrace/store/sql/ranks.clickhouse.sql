-- As for DuckDB.
SELECT
    {by} count() AS stored, sum(requests.weight) AS requests,
    {sampled} AS sampled, {unknown} AS unknown,
    ifNull(sumIf(requests.weight, duration_ms < {duration_ms:Float64}), 0) AS duration_below,
    {each parts, : count({column}) AS {part}_stored,
    ifNull(sumIf(requests.weight, isNotNull({column})), 0) AS {part}_requests,
    ifNull(sumIf(requests.weight, coalesce({column} < {{column}:Float64}, false)), 0) AS {part}_below end}
FROM {requests} AS requests
GROUP BY ALL

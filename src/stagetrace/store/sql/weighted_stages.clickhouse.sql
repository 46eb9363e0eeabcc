-- As for DuckDB.
SELECT
    {by} each_stage,
    [minIf(taken.ms, below >= 0.5), minIf(taken.ms, below >= 0.95), minIf(taken.ms, below >= 0.99)] AS quantiles
FROM (
    SELECT
        {by} each_stage, ms,
        sum(weight) OVER (
            PARTITION BY {by} each_stage ORDER BY ms ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
        ) / sum(weight) OVER (PARTITION BY {by} each_stage) + 1e-9 AS below
    FROM (
        SELECT {by} weight, each_stage, ms
        FROM {requests}
        ARRAY JOIN
            arrayConcat([CAST(NULL, 'Nullable(String)')], mapKeys(stages)) AS each_stage,
            arrayConcat([duration_ms], mapValues(stages)) AS ms
    )
) AS taken
GROUP BY ALL

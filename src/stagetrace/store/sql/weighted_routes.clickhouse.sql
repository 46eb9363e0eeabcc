-- As for DuckDB.
SELECT {by} [minIf(duration_ms, below >= 0.5), minIf(duration_ms, below >= 0.99)] AS quantiles
FROM (
    SELECT
        {by} duration_ms,
        sum(weight) OVER (PARTITION BY {by} true ORDER BY duration_ms ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW)
        / sum(weight) OVER (PARTITION BY {by} true) + 1e-9 AS below
    FROM {verdicts}
)
GROUP BY ALL

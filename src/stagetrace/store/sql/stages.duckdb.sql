-- Of each group: its requests, and of the whole (`duration_ms`) and of each stage that has a column a list: how many requests
-- have it, three exact quantiles, the greatest, the sum. Counts and sums are by weight, quantiles where all requests have the
-- same one; the list is empty where none has it.
SELECT
    -- In columns until each group is one row: a row for each stage of each request would take eight times the memory. In
    -- one list, as each quantile by itself would keep all the values.
    {by} sum(weight) AS requests, count(*) AS stored,
    {sampled} AS sampled,
    sampled AND (
        coalesce(max(sampling_probability), 0) = 0
        OR {unknown}
    ) AS unknown,
    min(weight) < max(weight) AS uneven,
    {each durations, : CASE
        WHEN count({column}) > 0 THEN list_concat(
            [sum(CASE WHEN {column} IS NOT NULL THEN weight END)], quantile_cont({column}, [0.5, 0.95, 0.99]),
            [max({column}), sum(weight * {column})]
        )
        ELSE []::DOUBLE[]
    END AS {column} end}
FROM {requests}
GROUP BY ALL

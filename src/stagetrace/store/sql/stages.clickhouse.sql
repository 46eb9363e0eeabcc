-- As for DuckDB.
SELECT
    {by} sum(weight) AS requests, count() AS stored,
    {sampled} AS sampled,
    sampled AND (
        coalesce(max(sampling_probability), 0) = 0
        OR {unknown}
    ) AS unknown,
    min(weight) < max(weight) AS uneven,
    {each durations, : if(
        count(taken.{column}) = 0, [],
        arrayConcat(
            [sumIf(weight, isNotNull(taken.{column}))], quantilesExactInclusive(0.5, 0.95, 0.99)(taken.{column}),
            [max(taken.{column}), sum(weight * taken.{column})]
        )
    ) AS {column} end}
FROM {requests} AS taken
GROUP BY ALL

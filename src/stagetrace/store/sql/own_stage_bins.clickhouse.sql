-- As for DuckDB.
SELECT
    {by} bin, stage, sum(weight * taken.ms) AS ms,
    arrayMap(
        one -> CAST((one.2, one.3), 'Tuple(span_id String, ms Float64)'),
        groupArraySorted({most:UInt32})((lot, span_id, taken.ms))
    ) AS sample
FROM (
    SELECT
        {by} weight, span_id, reverse(span_id) AS lot, stage, ms,
        multiIf(duration_ms > 0, toInt64(floor(ln(duration_ms) * 100)), duration_ms = 0, -100000, -100002) AS bin
    FROM (
        SELECT * EXCEPT (stage) FROM {requests} WHERE other_ms IS NOT NULL
    ) ARRAY JOIN mapKeys(stages) AS stage, mapValues(stages) AS ms
) AS taken
WHERE stage NOT IN (
    {each stages, : '{stage}' end}
)
GROUP BY ALL

-- As for DuckDB.
WITH timed AS (
    SELECT
        {by} weight, duration_ms, breached, upgraded, sampling_probability, span_id, reverse(span_id) AS lot,
        multiIf(duration_ms > 0, toInt64(floor(ln(duration_ms) * 100)), duration_ms = 0, -100000, -100002) AS bin,
        {each parts, : {column} end},
        {each parts + : coalesce({column}, 0) end} AS staged_ms
    FROM {requests}
)
SELECT
    {by} bin, min(duration_ms) AS low_ms, max(duration_ms) AS high_ms,
    count() AS stored, sum(weight) AS requests, sum(weight * weight) AS squares,
    min(weight) AS least_weight, max(weight) AS most_weight,
    countIf(staged_ms > duration_ms + 0.001) AS overlapping,
    {sampled} AS sampled, {unknown} AS unknown,
    {each parts, : coalesce(sum(weight * timed.{column}), 0) AS {column} end},
    sum(weight * greatest(0., duration_ms - staged_ms)) AS no_stage_ms,
    arrayMap(
        one -> CAST((one.2, one.3), 'Tuple(span_id String, told Array(Nullable(Float64)))'),
        groupArraySorted({most:UInt32})((
            lot,
            span_id,
            [
                toNullable(timed.weight), timed.duration_ms, {each parts, : timed.{column} end}
            ]
        ))
    ) AS sample
FROM timed
GROUP BY ALL

-- As for DuckDB.
WITH timed AS (
    SELECT
        {by} intDiv(start_unix_nano - {origin:Int64}, {width:Int64}) AS bucket, weight, duration_ms, breached,
        upgraded, sampling_probability,
        multiIf(duration_ms > 0, toInt64(floor(ln(duration_ms) * 100)), duration_ms = 0, -100000, -100002) AS bin,
        {each parts, : {column} end},
        {each parts + : coalesce({column}, 0) end} AS staged_ms
    FROM {requests}
),
summed AS (
    SELECT
        {by} bucket, bin, min(duration_ms) AS low_ms, max(duration_ms) AS high_ms,
        count() AS stored, sum(weight) AS requests, sum(weight * weight) AS squares,
        countIf(staged_ms > duration_ms + 0.001) AS overlapping,
        {sampled} AS sampled, {unknown} AS unknown,
        {each parts, : coalesce(sum(weight * timed.{column}), 0) AS {column} end},
        sum(weight * greatest(0., duration_ms - staged_ms)) AS no_stage_ms
    FROM timed
    GROUP BY ALL
),
sized AS (SELECT *, sum(summed.stored) OVER (PARTITION BY {by} 1) AS size FROM summed),
ranked AS (SELECT *, toInt64(dense_rank() OVER (ORDER BY size DESC, {by} 1)) AS place FROM sized),
counted AS (SELECT *, max(place) OVER () AS groups FROM ranked)
SELECT * EXCEPT (size) FROM counted WHERE place <= {most:Int64}

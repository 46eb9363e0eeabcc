-- As `stage_bins`, without samples: of the `most` largest of `groups` groups, in buckets of `width` ns from `origin` on.
WITH timed AS (
    SELECT
        {by} (start_unix_nano - $origin) // $width AS bucket, weight, duration_ms, breached, upgraded,
        sampling_probability,
        CASE
            WHEN duration_ms > 0 THEN floor(ln(duration_ms) * 100)::BIGINT
            WHEN duration_ms = 0 THEN -100000
            ELSE -100002
        END AS bin,
        {each parts, : {column} end},
        {each parts + : coalesce({column}, 0) end} AS staged_ms
    FROM {requests}
),
summed AS (
    SELECT
        {by} bucket, bin, min(duration_ms) AS low_ms, max(duration_ms) AS high_ms,
        count(*) AS stored, sum(weight) AS requests, sum(weight * weight) AS squares,
        count(*) FILTER (WHERE staged_ms > duration_ms + 0.001) AS overlapping,
        {sampled} AS sampled, {unknown} AS unknown,
        {each parts, : coalesce(sum(weight * {column}), 0) AS {column} end},
        sum(weight * greatest(0.0, duration_ms - staged_ms)) AS no_stage_ms
    FROM timed
    GROUP BY ALL
),
-- Groups are ranked by windows: the columns that make them may be NULL, which a join would lose.
sized AS (SELECT *, sum(stored) OVER (PARTITION BY {by} 1) AS size FROM summed),
ranked AS (SELECT *, dense_rank() OVER (ORDER BY size DESC, {by} 1) AS place FROM sized),
counted AS (SELECT *, max(place) OVER () AS groups FROM ranked)
SELECT * EXCLUDE (size) FROM counted WHERE place <= $most

-- Of requests whose durations are within 1 % of each other (bin b: from e^(b/100) ms on; of none, a bin below all): their
-- least and greatest duration, their number and, by weight, their whole time, that of each stage and that in none. Two bins below that: what ended before it
-- began. `least` to `unknown` are what `estimates` asks for. `sample`: of `most` of them at most, those with the least ids
-- read backwards, which are as good as drawn by lot: weight, duration and stages.
WITH timed AS (
    SELECT
        {by} weight, duration_ms, breached, upgraded, sampling_probability, span_id, reverse(span_id) AS lot,
        CASE
            WHEN duration_ms > 0 THEN floor(ln(duration_ms) * 100)::BIGINT
            WHEN duration_ms = 0 THEN -100000
            ELSE -100002
        END AS bin,
        {each parts, : {column} end},
        {each parts + : coalesce({column}, 0) end} AS staged_ms
    FROM {requests}
)
SELECT
    {by} bin, min(duration_ms) AS low_ms, max(duration_ms) AS high_ms,
    count(*) AS stored, sum(weight) AS requests, sum(weight * weight) AS squares,
    min(weight) AS least_weight, max(weight) AS most_weight,
    count(*) FILTER (WHERE staged_ms > duration_ms + 0.001) AS overlapping,
    {sampled} AS sampled, {unknown} AS unknown,
    {each parts, : coalesce(sum(weight * {column}), 0) AS {column} end},
    sum(weight * greatest(0.0, duration_ms - staged_ms)) AS no_stage_ms,
    min_by(
        struct_pack(
            span_id := span_id,
            told := [
                weight, duration_ms, {each parts, : {column} end}
            ]
        ), lot, $most
    ) AS sample
FROM timed
GROUP BY ALL

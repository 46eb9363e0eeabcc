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
        network_receive_ms, queue_ms, preprocess_ms, handler_ms, inference_ms, postprocess_ms, network_send_ms, other_ms,
        coalesce(network_receive_ms, 0) + coalesce(queue_ms, 0) + coalesce(preprocess_ms, 0) + coalesce(handler_ms, 0)
        + coalesce(inference_ms, 0) + coalesce(postprocess_ms, 0) + coalesce(network_send_ms, 0)
        + coalesce(other_ms, 0) AS staged_ms
    FROM {requests}
),
summed AS (
    SELECT
        {by} bucket, bin, min(duration_ms) AS low_ms, max(duration_ms) AS high_ms,
        count(*) AS stored, sum(weight) AS requests, sum(weight * weight) AS squares,
        count(*) FILTER (WHERE staged_ms > duration_ms + 0.001) AS overlapping,
        bool_or(sampling_probability IS NOT NULL OR coalesce(upgraded, false)) AS sampled,
        bool_or(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false)) AS unknown,
        coalesce(sum(weight * network_receive_ms), 0) AS network_receive_ms, coalesce(sum(weight * queue_ms), 0) AS queue_ms,
        coalesce(sum(weight * preprocess_ms), 0) AS preprocess_ms, coalesce(sum(weight * handler_ms), 0) AS handler_ms,
        coalesce(sum(weight * inference_ms), 0) AS inference_ms, coalesce(sum(weight * postprocess_ms), 0) AS postprocess_ms,
        coalesce(sum(weight * network_send_ms), 0) AS network_send_ms, coalesce(sum(weight * other_ms), 0) AS other_ms,
        sum(weight * greatest(0.0, duration_ms - staged_ms)) AS no_stage_ms
    FROM timed
    GROUP BY ALL
),
-- Groups are ranked by windows: the columns that make them may be NULL, which a join would lose.
sized AS (SELECT *, sum(stored) OVER (PARTITION BY {by} 1) AS size FROM summed),
ranked AS (SELECT *, dense_rank() OVER (ORDER BY size DESC, {by} 1) AS place FROM sized),
counted AS (SELECT *, max(place) OVER () AS groups FROM ranked)
SELECT * EXCLUDE (size) FROM counted WHERE place <= $most

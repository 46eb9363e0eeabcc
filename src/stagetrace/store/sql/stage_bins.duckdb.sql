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
        network_receive_ms, queue_ms, preprocess_ms, handler_ms, inference_ms, postprocess_ms, network_send_ms, other_ms,
        coalesce(network_receive_ms, 0) + coalesce(queue_ms, 0) + coalesce(preprocess_ms, 0) + coalesce(handler_ms, 0)
        + coalesce(inference_ms, 0) + coalesce(postprocess_ms, 0) + coalesce(network_send_ms, 0)
        + coalesce(other_ms, 0) AS staged_ms
    FROM {requests}
)
SELECT
    {by} bin, min(duration_ms) AS low_ms, max(duration_ms) AS high_ms,
    count(*) AS stored, sum(weight) AS requests, sum(weight * weight) AS squares,
    min(weight) AS least_weight, max(weight) AS most_weight,
    count(*) FILTER (WHERE staged_ms > duration_ms + 0.001) AS overlapping,
    bool_or(sampling_probability IS NOT NULL OR coalesce(upgraded, false)) AS sampled,
    bool_or(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false)) AS unknown,
    coalesce(sum(weight * network_receive_ms), 0) AS network_receive_ms, coalesce(sum(weight * queue_ms), 0) AS queue_ms,
    coalesce(sum(weight * preprocess_ms), 0) AS preprocess_ms, coalesce(sum(weight * handler_ms), 0) AS handler_ms,
    coalesce(sum(weight * inference_ms), 0) AS inference_ms, coalesce(sum(weight * postprocess_ms), 0) AS postprocess_ms,
    coalesce(sum(weight * network_send_ms), 0) AS network_send_ms, coalesce(sum(weight * other_ms), 0) AS other_ms,
    sum(weight * greatest(0.0, duration_ms - staged_ms)) AS no_stage_ms,
    min_by(
        struct_pack(
            span_id := span_id,
            told := [
                weight, duration_ms, network_receive_ms, queue_ms, preprocess_ms, handler_ms, inference_ms, postprocess_ms,
                network_send_ms, other_ms
            ]
        ), lot, $most
    ) AS sample
FROM timed
GROUP BY ALL

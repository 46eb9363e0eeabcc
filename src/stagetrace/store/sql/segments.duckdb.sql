-- Requests of the `most` largest groups of one key (`segment`; NULL: without it), and of all others together (`place` 0), by
-- service, route and duration: in buckets 2 % wide, with the least and the greatest duration of each. Sums are by
-- weight, `squares` are those of the weights; there are `groups` groups in all.
WITH counted AS (
    SELECT
        coalesce({by} NULL)::VARCHAR AS segment, service, path,
        floor(ln(greatest(duration_ms, 1e-3)) / ln(1.02))::INTEGER AS bucket, sum(weight) AS requests,
        coalesce(sum(weight) FILTER (WHERE NOT breached), 0) AS good,
        coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches,
        coalesce(sum(weight * weight) FILTER (WHERE NOT breached), 0) AS squares_good, sum(weight * weight) AS squares,
        count(*) AS stored, min(duration_ms) AS low_ms, max(duration_ms) AS high_ms,
        coalesce(sum(overrun_ms) FILTER (WHERE breached), 0) AS over_ms,
        coalesce(sum(weight * network_receive_ms), 0) AS network_receive_sum,
        coalesce(sum(weight * queue_ms), 0) AS queue_sum,
        coalesce(sum(weight * preprocess_ms), 0) AS preprocess_sum,
        coalesce(sum(weight * handler_ms), 0) AS handler_sum,
        coalesce(sum(weight * inference_ms), 0) AS inference_sum,
        coalesce(sum(weight * postprocess_ms), 0) AS postprocess_sum,
        coalesce(sum(weight * network_send_ms), 0) AS network_send_sum,
        coalesce(sum(weight * other_ms), 0) AS other_sum,
        bool_or(sampling_probability IS NOT NULL OR coalesce(upgraded, false)) AS sampled,
        bool_or(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false)) AS unknown
    FROM {requests}
    GROUP BY ALL
),
sized AS (SELECT segment, sum(requests) AS size FROM counted GROUP BY segment),
ranked AS (
    SELECT
        segment, row_number() OVER (ORDER BY size DESC, segment IS NULL, segment) AS place, count(*) OVER () AS groups
    FROM sized
),
kept AS (
    SELECT
        counted.* EXCLUDE (segment), groups, CASE WHEN place <= $most THEN place ELSE 0 END AS place,
        CASE WHEN place <= $most THEN counted.segment END AS segment
    FROM counted JOIN ranked ON counted.segment IS NOT DISTINCT FROM ranked.segment
)
SELECT
    segment, place, max(groups) AS groups, service, path, bucket, sum(requests) AS requests, sum(good) AS good,
    sum(breaches) AS breaches, sum(squares_good) AS squares_good, sum(squares) AS squares, sum(stored)::BIGINT AS stored,
    min(low_ms) AS low_ms, max(high_ms) AS high_ms, sum(over_ms) AS over_ms,
    sum(network_receive_sum) AS network_receive_sum,
    sum(queue_sum) AS queue_sum,
    sum(preprocess_sum) AS preprocess_sum,
    sum(handler_sum) AS handler_sum,
    sum(inference_sum) AS inference_sum,
    sum(postprocess_sum) AS postprocess_sum,
    sum(network_send_sum) AS network_send_sum,
    sum(other_sum) AS other_sum,
    bool_or(sampled) AS sampled, bool_or(unknown) AS unknown
FROM kept
GROUP BY segment, place, service, path, bucket

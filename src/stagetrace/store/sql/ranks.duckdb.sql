-- How requests rank by one of them: of all, and of those with each stage, how many there are, and how many took less than it
-- did (`$NAME_ms`). `stored` counts rows, all else is by weight. One scan, and one row.
SELECT
    {by} count(*) AS stored, sum(weight) AS requests,
    bool_or(sampling_probability IS NOT NULL OR coalesce(upgraded, false)) AS sampled,
    bool_or(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false)) AS unknown,
    coalesce(sum(weight) FILTER (WHERE duration_ms < $duration_ms), 0) AS duration_below,
    count(network_receive_ms) AS network_receive_stored, coalesce(sum(weight) FILTER (WHERE network_receive_ms IS NOT NULL), 0) AS network_receive_requests,
    coalesce(sum(weight) FILTER (WHERE network_receive_ms < $network_receive_ms), 0) AS network_receive_below,
    count(queue_ms) AS queue_stored, coalesce(sum(weight) FILTER (WHERE queue_ms IS NOT NULL), 0) AS queue_requests,
    coalesce(sum(weight) FILTER (WHERE queue_ms < $queue_ms), 0) AS queue_below,
    count(preprocess_ms) AS preprocess_stored, coalesce(sum(weight) FILTER (WHERE preprocess_ms IS NOT NULL), 0) AS preprocess_requests,
    coalesce(sum(weight) FILTER (WHERE preprocess_ms < $preprocess_ms), 0) AS preprocess_below,
    count(handler_ms) AS handler_stored, coalesce(sum(weight) FILTER (WHERE handler_ms IS NOT NULL), 0) AS handler_requests,
    coalesce(sum(weight) FILTER (WHERE handler_ms < $handler_ms), 0) AS handler_below,
    count(inference_ms) AS inference_stored, coalesce(sum(weight) FILTER (WHERE inference_ms IS NOT NULL), 0) AS inference_requests,
    coalesce(sum(weight) FILTER (WHERE inference_ms < $inference_ms), 0) AS inference_below,
    count(postprocess_ms) AS postprocess_stored, coalesce(sum(weight) FILTER (WHERE postprocess_ms IS NOT NULL), 0) AS postprocess_requests,
    coalesce(sum(weight) FILTER (WHERE postprocess_ms < $postprocess_ms), 0) AS postprocess_below,
    count(network_send_ms) AS network_send_stored, coalesce(sum(weight) FILTER (WHERE network_send_ms IS NOT NULL), 0) AS network_send_requests,
    coalesce(sum(weight) FILTER (WHERE network_send_ms < $network_send_ms), 0) AS network_send_below,
    count(other_ms) AS other_stored, coalesce(sum(weight) FILTER (WHERE other_ms IS NOT NULL), 0) AS other_requests,
    coalesce(sum(weight) FILTER (WHERE other_ms < $other_ms), 0) AS other_below
FROM {requests}
GROUP BY ALL

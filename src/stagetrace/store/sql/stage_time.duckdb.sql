-- How long each stage of the requests of each group took, by weight; `rest_ms`: what no stage tells of their durations.
SELECT
    {by} coalesce(breached, false) AS is_breach,
    coalesce(sum(weight * greatest(network_receive_ms, 0)), 0) AS network_receive_total_ms,
    coalesce(sum(weight * greatest(queue_ms, 0)), 0) AS queue_total_ms,
    coalesce(sum(weight * greatest(preprocess_ms, 0)), 0) AS preprocess_total_ms,
    coalesce(sum(weight * greatest(handler_ms, 0)), 0) AS handler_total_ms,
    coalesce(sum(weight * greatest(inference_ms, 0)), 0) AS inference_total_ms,
    coalesce(sum(weight * greatest(postprocess_ms, 0)), 0) AS postprocess_total_ms,
    coalesce(sum(weight * greatest(network_send_ms, 0)), 0) AS network_send_total_ms,
    coalesce(sum(weight * greatest(other_ms, 0)), 0) AS other_total_ms,
    coalesce(sum(weight * greatest(0, duration_ms - (
        coalesce(network_receive_ms, 0) + coalesce(queue_ms, 0) + coalesce(preprocess_ms, 0) + coalesce(handler_ms, 0)
        + coalesce(inference_ms, 0) + coalesce(postprocess_ms, 0) + coalesce(network_send_ms, 0) + coalesce(other_ms, 0)
    ))), 0) AS rest_ms,
    count(*) AS stored
FROM {requests}
GROUP BY ALL
ORDER BY stored DESC
LIMIT $most

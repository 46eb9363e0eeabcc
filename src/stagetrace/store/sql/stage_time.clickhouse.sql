-- As for DuckDB. `greatest` of NULL is NULL here, and a sum of none is coalesced to 0.
SELECT
    {by} coalesce(breached, false) AS is_breach,
    coalesce(sum(weight * greatest(coalesce(network_receive_ms, 0), 0)), 0) AS network_receive_total_ms,
    coalesce(sum(weight * greatest(coalesce(queue_ms, 0), 0)), 0) AS queue_total_ms,
    coalesce(sum(weight * greatest(coalesce(preprocess_ms, 0), 0)), 0) AS preprocess_total_ms,
    coalesce(sum(weight * greatest(coalesce(handler_ms, 0), 0)), 0) AS handler_total_ms,
    coalesce(sum(weight * greatest(coalesce(inference_ms, 0), 0)), 0) AS inference_total_ms,
    coalesce(sum(weight * greatest(coalesce(postprocess_ms, 0), 0)), 0) AS postprocess_total_ms,
    coalesce(sum(weight * greatest(coalesce(network_send_ms, 0), 0)), 0) AS network_send_total_ms,
    coalesce(sum(weight * greatest(coalesce(other_ms, 0), 0)), 0) AS other_total_ms,
    coalesce(sum(weight * greatest(0, duration_ms - (
        coalesce(network_receive_ms, 0) + coalesce(queue_ms, 0) + coalesce(preprocess_ms, 0) + coalesce(handler_ms, 0)
        + coalesce(inference_ms, 0) + coalesce(postprocess_ms, 0) + coalesce(network_send_ms, 0) + coalesce(other_ms, 0)
    ))), 0) AS rest_ms,
    count() AS stored
FROM {requests}
GROUP BY ALL
ORDER BY stored DESC
LIMIT {most:UInt64}

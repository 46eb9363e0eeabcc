-- As for DuckDB.
SELECT
    {by} count() AS stored, sum(requests.weight) AS requests,
    max(isNotNull(sampling_probability) OR coalesce(upgraded, false)) AS sampled,
    max(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false)) AS unknown,
    ifNull(sumIf(requests.weight, duration_ms < {duration_ms:Float64}), 0) AS duration_below,
    count(network_receive_ms) AS network_receive_stored, ifNull(sumIf(requests.weight, isNotNull(network_receive_ms)), 0) AS network_receive_requests,
    ifNull(sumIf(requests.weight, coalesce(network_receive_ms < {network_receive_ms:Float64}, false)), 0) AS network_receive_below,
    count(queue_ms) AS queue_stored, ifNull(sumIf(requests.weight, isNotNull(queue_ms)), 0) AS queue_requests,
    ifNull(sumIf(requests.weight, coalesce(queue_ms < {queue_ms:Float64}, false)), 0) AS queue_below,
    count(preprocess_ms) AS preprocess_stored, ifNull(sumIf(requests.weight, isNotNull(preprocess_ms)), 0) AS preprocess_requests,
    ifNull(sumIf(requests.weight, coalesce(preprocess_ms < {preprocess_ms:Float64}, false)), 0) AS preprocess_below,
    count(handler_ms) AS handler_stored, ifNull(sumIf(requests.weight, isNotNull(handler_ms)), 0) AS handler_requests,
    ifNull(sumIf(requests.weight, coalesce(handler_ms < {handler_ms:Float64}, false)), 0) AS handler_below,
    count(inference_ms) AS inference_stored, ifNull(sumIf(requests.weight, isNotNull(inference_ms)), 0) AS inference_requests,
    ifNull(sumIf(requests.weight, coalesce(inference_ms < {inference_ms:Float64}, false)), 0) AS inference_below,
    count(postprocess_ms) AS postprocess_stored, ifNull(sumIf(requests.weight, isNotNull(postprocess_ms)), 0) AS postprocess_requests,
    ifNull(sumIf(requests.weight, coalesce(postprocess_ms < {postprocess_ms:Float64}, false)), 0) AS postprocess_below,
    count(network_send_ms) AS network_send_stored, ifNull(sumIf(requests.weight, isNotNull(network_send_ms)), 0) AS network_send_requests,
    ifNull(sumIf(requests.weight, coalesce(network_send_ms < {network_send_ms:Float64}, false)), 0) AS network_send_below,
    count(other_ms) AS other_stored, ifNull(sumIf(requests.weight, isNotNull(other_ms)), 0) AS other_requests,
    ifNull(sumIf(requests.weight, coalesce(other_ms < {other_ms:Float64}, false)), 0) AS other_below
FROM {requests} AS requests
GROUP BY ALL

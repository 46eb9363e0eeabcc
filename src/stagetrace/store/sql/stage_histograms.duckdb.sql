-- As `histograms`, of each stage in the requests that have it.
SELECT
    {by} input_size, stage, CASE WHEN ms > 0 THEN floor(log2(ms) * $bins)::BIGINT END AS bin,
    sum(weight) AS weight, sum(weight * weight) AS squares, count(*) AS stored, min(ms) AS low, max(ms) AS high
FROM (
    SELECT
        {by} CASE WHEN size > 0 THEN floor(log2(size) / 2)::BIGINT WHEN size = 0 THEN -1 END AS input_size, weight,
        unnest([
            'network.receive', 'queue', 'preprocess', 'handler', 'inference', 'postprocess', 'network.send', '(others)'
        ]) AS stage,
        unnest([
            network_receive_ms, queue_ms, preprocess_ms, handler_ms, inference_ms, postprocess_ms, network_send_ms, other_ms
        ]) AS ms
    FROM (SELECT *, CASE WHEN $sizes THEN coalesce(request_bytes, batch_size) END AS size FROM {requests})
)
WHERE ms IS NOT NULL
GROUP BY ALL
LIMIT $most

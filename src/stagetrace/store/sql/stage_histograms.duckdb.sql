-- As `histograms`, of each stage in the requests that have it.
WITH sized AS (
    SELECT *, CASE WHEN size > 0 THEN floor(log2(size) / 2)::BIGINT WHEN size = 0 THEN -1 END AS input_size
    FROM (SELECT *, CASE WHEN $sizes THEN coalesce(request_bytes, batch_size) END AS size FROM {requests})
),
-- Not by a list for each request, which takes longer.
timed AS (
    SELECT {by} input_size, weight, 'network.receive' AS stage, network_receive_ms AS ms FROM sized
    UNION ALL SELECT {by} input_size, weight, 'queue' AS stage, queue_ms AS ms FROM sized
    UNION ALL SELECT {by} input_size, weight, 'preprocess' AS stage, preprocess_ms AS ms FROM sized
    UNION ALL SELECT {by} input_size, weight, 'handler' AS stage, handler_ms AS ms FROM sized
    UNION ALL SELECT {by} input_size, weight, 'inference' AS stage, inference_ms AS ms FROM sized
    UNION ALL SELECT {by} input_size, weight, 'postprocess' AS stage, postprocess_ms AS ms FROM sized
    UNION ALL SELECT {by} input_size, weight, 'network.send' AS stage, network_send_ms AS ms FROM sized
    UNION ALL SELECT {by} input_size, weight, '(others)' AS stage, other_ms AS ms FROM sized
)
SELECT
    {by} input_size, stage, CASE WHEN ms > 0 THEN floor(log2(ms) * $bins)::BIGINT END AS bin,
    sum(weight) AS weight, sum(weight * weight) AS squares, count(*) AS stored, min(ms) AS low, max(ms) AS high
FROM timed
WHERE ms IS NOT NULL
GROUP BY ALL
LIMIT $most

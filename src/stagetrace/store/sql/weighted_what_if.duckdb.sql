-- As `what_if`, of requests that do not all stand for equally many: the least duration that so many requests did not exceed.
WITH cut AS (
    SELECT
        {by} weight,
        duration_ms - $cut * coalesce(
            CASE $stage
                WHEN 'network.receive' THEN network_receive_ms
                WHEN 'queue' THEN queue_ms
                WHEN 'preprocess' THEN preprocess_ms
                WHEN 'handler' THEN handler_ms
                WHEN 'inference' THEN inference_ms
                WHEN 'postprocess' THEN postprocess_ms
                WHEN 'network.send' THEN network_send_ms
                ELSE stages[$stage]
            END, 0
        ) AS ms
    FROM {requests}
    WHERE duration_ms >= 0
),
ranked AS (
    SELECT
        {by} ms,
        -- A little more, since sums of fractions may fall short by a rounding.
        sum(weight) OVER (PARTITION BY {by} 1 ORDER BY ms) / sum(weight) OVER (PARTITION BY {by} 1) + 1e-9 AS below
    FROM cut
)
SELECT
    {by} [
        min(ms) FILTER (WHERE below >= 0.5), min(ms) FILTER (WHERE below >= 0.95), min(ms) FILTER (WHERE below >= 0.99)
    ] AS quantiles
FROM ranked
GROUP BY ALL

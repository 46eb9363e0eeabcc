-- As for DuckDB.
WITH timed AS (
    SELECT
        {by} intDiv(start_unix_nano - {origin:Int64}, {width:Int64}) AS bucket, weight, part, ms
    FROM {requests}
    ARRAY JOIN
        ['request', 'network.receive', 'queue', 'preprocess', 'handler', 'inference', 'postprocess', 'network.send', 'other']
            AS part,
        [
            duration_ms, network_receive_ms, queue_ms, preprocess_ms, handler_ms, inference_ms, postprocess_ms,
            network_send_ms, other_ms
        ] AS ms
),
binned AS (
    SELECT
        {by} bucket, part, if(ms > 1e-6, floor(log(ms) * 50), -1000) AS bin,
        sum(weight) AS held, count() AS stored, min(ms) AS low, max(ms) AS high
    FROM timed
    WHERE ms >= 0
    GROUP BY ALL
),
ranked AS (
    SELECT
        *, held / stored AS each, sum(held) OVER (PARTITION BY {by} bucket, part) AS whole,
        sum(held) OVER (PARTITION BY {by} bucket, part ORDER BY bin ROWS UNBOUNDED PRECEDING) AS upto,
        max(high) OVER (
            PARTITION BY {by} bucket, part ORDER BY bin ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS below,
        sum(stored) OVER (PARTITION BY {by} part) AS of_all
    FROM binned
)
SELECT
    {by} bucket, part, sum(ranked.stored) AS stored, sum(held) AS requests,
    coalesce(min(CASE
        WHEN upto - each / 2 < 0.5 * whole - 1e-9 THEN NULL
        WHEN upto > held AND 0.5 * whole < upto - held + each / 2
        THEN below + (low - below) * greatest(0, (0.5 * whole - upto + held) / each + 0.5)
        ELSE low + (high - low) * least(1, greatest(0, (0.5 * whole - upto + held - each / 2) / greatest(held - each, each)))
    END), max(high)) AS p50_ms,
    coalesce(min(CASE
        WHEN upto - each / 2 < 0.95 * whole - 1e-9 THEN NULL
        WHEN upto > held AND 0.95 * whole < upto - held + each / 2
        THEN below + (low - below) * greatest(0, (0.95 * whole - upto + held) / each + 0.5)
        ELSE low + (high - low) * least(1, greatest(0, (0.95 * whole - upto + held - each / 2) / greatest(held - each, each)))
    END), max(high)) AS p95_ms,
    coalesce(min(CASE
        WHEN upto - each / 2 < 0.99 * whole - 1e-9 THEN NULL
        WHEN upto > held AND 0.99 * whole < upto - held + each / 2
        THEN below + (low - below) * greatest(0, (0.99 * whole - upto + held) / each + 0.5)
        ELSE low + (high - low) * least(1, greatest(0, (0.99 * whole - upto + held - each / 2) / greatest(held - each, each)))
    END), max(high)) AS p99_ms
FROM ranked
WHERE of_all >= {least:Int64}
GROUP BY ALL

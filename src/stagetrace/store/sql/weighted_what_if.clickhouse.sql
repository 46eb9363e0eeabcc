-- As for DuckDB.
WITH cut AS (
    SELECT
        {by} weight,
        assumeNotNull(duration_ms) - {cut:Float64} * coalesce(
            multiIf(
                {stage:String} = 'network.receive', network_receive_ms,
                {stage:String} = 'queue', queue_ms,
                {stage:String} = 'preprocess', preprocess_ms,
                {stage:String} = 'handler', handler_ms,
                {stage:String} = 'inference', inference_ms,
                {stage:String} = 'postprocess', postprocess_ms,
                {stage:String} = 'network.send', network_send_ms,
                stages[{stage:String}]
            ), 0
        ) AS ms
    FROM {requests}
    WHERE duration_ms >= 0
),
ranked AS (
    SELECT
        {by} ms,
        sum(weight) OVER (PARTITION BY {by} 1 ORDER BY ms) / sum(weight) OVER (PARTITION BY {by} 1) + 1e-9 AS below
    FROM cut
)
SELECT
    {by} [minIf(ms, below >= 0.5), minIf(ms, below >= 0.95), minIf(ms, below >= 0.99)] AS quantiles
FROM ranked
GROUP BY ALL

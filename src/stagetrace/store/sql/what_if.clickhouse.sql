-- As for DuckDB.
SELECT
    {by} quantilesExactInclusive(0.5, 0.95, 0.99)(
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
        )
    ) AS quantiles
FROM {requests}
WHERE duration_ms >= 0
GROUP BY ALL

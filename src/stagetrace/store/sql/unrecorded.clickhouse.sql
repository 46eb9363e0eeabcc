-- As for DuckDB.
SELECT
    {by} toInt64(arrayCount(cut -> cut <= start_unix_nano, {cuts:Array(Int64)})) AS band, sum(weight) AS requests
FROM {requests}
WHERE
    verdict IS NULL AND breached IS NULL AND network_receive_ms IS NULL AND queue_ms IS NULL AND preprocess_ms IS NULL
    AND handler_ms IS NULL AND inference_ms IS NULL AND postprocess_ms IS NULL AND network_send_ms IS NULL
    AND other_ms IS NULL
GROUP BY ALL

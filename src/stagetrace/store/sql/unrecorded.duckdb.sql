-- Of each group and band, as in `verdicts`: how many requests have neither verdict nor stages. Their spans are not stagetrace's.
SELECT
    {by} len(list_filter($cuts::BIGINT[], lambda cut: cut <= start_unix_nano)) AS band, sum(weight) AS requests
FROM {requests}
WHERE
    verdict IS NULL AND breached IS NULL AND network_receive_ms IS NULL AND queue_ms IS NULL AND preprocess_ms IS NULL
    AND handler_ms IS NULL AND inference_ms IS NULL AND postprocess_ms IS NULL AND network_send_ms IS NULL
    AND other_ms IS NULL
GROUP BY ALL

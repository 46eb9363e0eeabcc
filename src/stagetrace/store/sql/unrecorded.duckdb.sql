-- Of each group and band, as in `verdicts`: how many requests have neither verdict nor stages. Their spans are not stagetrace's.
SELECT
    {by} len(list_filter($cuts::BIGINT[], lambda cut: cut <= start_unix_nano)) AS band, sum(weight) AS requests
FROM {requests}
WHERE
    verdict IS NULL AND breached IS NULL AND {each parts AND : {column} IS NULL end}
GROUP BY ALL

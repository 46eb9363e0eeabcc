-- As for DuckDB.
SELECT
    {by} toInt64(arrayCount(cut -> cut <= start_unix_nano, {cuts:Array(Int64)})) AS band, sum(weight) AS requests
FROM {requests}
WHERE
    verdict IS NULL AND breached IS NULL AND {each parts AND : {column} IS NULL end}
GROUP BY ALL

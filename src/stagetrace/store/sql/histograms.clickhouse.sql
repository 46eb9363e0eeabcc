-- As for DuckDB.
SELECT
    {by} multiIf(size > 0, toInt64(floor(log2(size) / 2)), size = 0, -1, NULL) AS input_size,
    if(duration_ms > 0, toInt64(floor(log2(duration_ms) * {bins:UInt64})), NULL) AS bin,
    sum(requests.weight) AS weight, sum(requests.weight * requests.weight) AS squares, count() AS stored,
    min(duration_ms) AS low, max(duration_ms) AS high,
    {sampled} AS sampled, {unknown} AS unknown
FROM (SELECT *, if({sizes:Bool}, coalesce(request_bytes, batch_size), NULL) AS size FROM {requests}) AS requests
GROUP BY ALL
LIMIT {most:UInt64}

-- As for DuckDB.
SELECT
    {by} input_size, stage, if(ms > 0, toInt64(floor(log2(ms) * {bins:UInt64})), NULL) AS bin,
    sum(timed.weight) AS weight, sum(timed.weight * timed.weight) AS squares, count() AS stored, min(ms) AS low,
    max(ms) AS high
FROM (
    SELECT
        {by} multiIf(size > 0, toInt64(floor(log2(size) / 2)), size = 0, -1, NULL) AS input_size, weight,
        pair.1 AS stage, pair.2 AS ms
    FROM (
        SELECT
            *, if({sizes:Bool}, coalesce(request_bytes, batch_size), NULL) AS size,
            arrayJoin([
                {each stages, : ('{stage}', {column}) end}, ('(others)', other_ms)
            ]) AS pair
        FROM {requests}
    )
) AS timed
WHERE ms IS NOT NULL
GROUP BY ALL
LIMIT {most:UInt64}

-- As for DuckDB.
SELECT
    CAST(
        start_unix_nano >= {box_since:Int64} AND start_unix_nano < {box_until:Int64}
        AND duration_ms >= {box_least:Float64} AND duration_ms < {box_most:Float64} AS Bool
    ) AS inside,
    sum(weight) AS requests, coalesce(sumIf(weight, breached), 0) AS breaches, count() AS stored,
    {sampled} AS sampled, {unknown} AS unknown
FROM {requests}
GROUP BY ALL

-- As for DuckDB.
WITH fine AS (
    SELECT
        intDiv(start_unix_nano - {origin:Int64}, {width:Int64}) AS bucket,
        toInt64(floor(log2(greatest(duration_ms, 1 / 1024)) * {bins:UInt64})) AS bin, sum(weight) AS requests,
        coalesce(sumIf(weight, breached), 0) AS breaches, count() AS stored, count(breached) AS judged,
        {sampled} AS sampled, {unknown} AS unknown
    FROM {requests}
    WHERE start_unix_nano >= {origin:Int64} AND start_unix_nano < {origin:Int64} + {width:Int64} * {columns:Int64}
    GROUP BY ALL
),
measured AS (
    SELECT
        *, min(bin) OVER () AS lowest, intDiv(max(bin) OVER () - min(bin) OVER (), {rows:Int64}) + 1 AS step
    FROM fine
)
SELECT
    bucket, intDiv(bin - lowest, step) AS place, lowest, step, sum(measured.requests) AS requests,
    sum(measured.breaches) AS breaches, sum(measured.stored) AS stored, sum(measured.judged) AS judged,
    max(measured.sampled) AS sampled, max(measured.unknown) AS unknown
FROM measured
GROUP BY bucket, place, lowest, step

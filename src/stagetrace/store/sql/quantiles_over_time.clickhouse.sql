-- As for DuckDB.
WITH timed AS (
    SELECT
        {by} intDiv(start_unix_nano - {origin:Int64}, {width:Int64}) AS bucket, weight, part, ms
    FROM {requests}
    ARRAY JOIN
        ['request', {each parts, : '{stage}' end}]
            AS part,
        [
            duration_ms, {each parts, : {column} end}
        ] AS ms
),
binned AS (
    SELECT
        {by} bucket, part, if(ms > 1e-6, floor(log(ms) * 50), -1000) AS bin,
        sum(weight) AS held, count() AS stored, min(ms) AS low, max(ms) AS high
    FROM timed
    WHERE ms >= 0
    GROUP BY ALL
),
ranked AS (
    SELECT
        *, held / stored AS each, sum(held) OVER (PARTITION BY {by} bucket, part) AS whole,
        sum(held) OVER (PARTITION BY {by} bucket, part ORDER BY bin ROWS UNBOUNDED PRECEDING) AS upto,
        max(high) OVER (
            PARTITION BY {by} bucket, part ORDER BY bin ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS below,
        sum(stored) OVER (PARTITION BY {by} part) AS of_all
    FROM binned
)
SELECT
    {by} bucket, part, sum(ranked.stored) AS stored, sum(held) AS requests,
    {each quantiles, : coalesce(min(CASE
        WHEN upto - each / 2 < {q} * whole - 1e-9 THEN NULL
        WHEN upto > held AND {q} * whole < upto - held + each / 2
        THEN below + (low - below) * greatest(0, ({q} * whole - upto + held) / each + 0.5)
        ELSE low + (high - low) * least(1, greatest(0, ({q} * whole - upto + held - each / 2) / greatest(held - each, each)))
    END), max(high)) AS {name}_ms end}
FROM ranked
WHERE of_all >= {least:Int64}
GROUP BY ALL

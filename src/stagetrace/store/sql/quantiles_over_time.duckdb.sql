-- Quantiles of requests (`part` 'request') and of each stage, of each group with `least` of them and each bucket of `width`
-- ns from `origin` on. By weight (Hazen's), out of bins 2 % wide, between the least and the greatest value of each: exact
-- where bins have one or two. A time below 0 counts for nothing. One pass, and no value is kept; a number stands for a group
-- until the end, since windows over its columns take twice the time.
WITH named AS (
    SELECT {by} hash({by} 0) AS number FROM {requests} GROUP BY ALL HAVING count(*) >= $least
),
placed AS (
    SELECT *, hash({by} 0) AS number, (start_unix_nano - $origin) // $width AS bucket
    FROM {requests}
    WHERE hash({by} 0) IN (SELECT number FROM named)
),
timed AS (
    -- Not by a list for each request, which takes twice the time.
    SELECT number, bucket, weight, 'request' AS part, duration_ms AS ms FROM placed WHERE duration_ms >= 0
    UNION ALL
    {each parts UNION ALL : SELECT number, bucket, weight, '{stage}' AS part, {column} AS ms FROM placed WHERE {column} >= 0 end}
),
binned AS (
    SELECT
        number, bucket, part, CAST(CASE WHEN ms > 1e-6 THEN floor(ln(ms) * 50) ELSE -1000 END AS SMALLINT) AS bin,
        sum(weight) AS held, count(*) AS stored, min(ms) AS low, max(ms) AS high
    FROM timed
    GROUP BY ALL
),
ranked AS (
    SELECT
        *, held / stored AS each, sum(held) OVER (PARTITION BY number, bucket, part) AS whole,
        sum(held) OVER (PARTITION BY number, bucket, part ORDER BY bin ROWS UNBOUNDED PRECEDING) AS upto,
        max(high) OVER (
            PARTITION BY number, bucket, part ORDER BY bin ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS below
    FROM binned
)
SELECT
    {by} bucket, part, sum(stored) AS stored, sum(held) AS requests,
    {each quantiles, : coalesce(min(CASE
        WHEN upto - each / 2 < {q} * whole - 1e-9 THEN NULL
        WHEN upto > held AND {q} * whole < upto - held + each / 2
        THEN below + (low - below) * greatest(0, ({q} * whole - upto + held) / each + 0.5)
        ELSE low + (high - low) * least(1, greatest(0, ({q} * whole - upto + held - each / 2) / greatest(held - each, each)))
    END), max(high)) AS {name}_ms end}
FROM ranked JOIN named USING (number)
GROUP BY ALL

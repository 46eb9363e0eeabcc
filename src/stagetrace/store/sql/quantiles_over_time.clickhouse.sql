-- As for DuckDB; by sorted arrays of bins in place of windows over them, which sort millions of rows by all columns.
WITH timed AS (
    SELECT
        {by} intDiv(start_unix_nano - {origin:Int64}, {width:Int64}) AS bucket, weight, part, ms
    FROM {requests}
    ARRAY JOIN
        CAST(['request', {each parts, : '{stage}' end}] AS Array(LowCardinality(String)))
            AS part,
        [
            duration_ms, {each parts, : {column} end}
        ] AS ms
    WHERE cityHash64(toString(({by} 0))) IN (  -- by its text, since that of a NULL is NULL
        SELECT cityHash64(toString(({by} 0))) FROM {requests} GROUP BY ALL HAVING count() >= {least:Int64}
    )
),
binned AS (
    SELECT
        {by} bucket, part, if(ms > 1e-6, floor(log(ms) * 50), -1000) AS bin,
        assumeNotNull(sum(weight)) AS held, count() AS stored, min(assumeNotNull(ms)) AS low, max(assumeNotNull(ms)) AS high
    FROM timed
    WHERE ms >= 0
    GROUP BY ALL
),
grouped AS (
    SELECT
        {by} bucket, part, arraySort(groupArray((assumeNotNull(bin), held, stored, low, high))) AS bins,
        sum(stored) AS stored_
    FROM binned
    GROUP BY ALL
),
ranked AS (
    SELECT
        *, bins.2 AS held, bins.4 AS low, bins.5 AS high, arrayCumSum(held) AS upto, upto[-1] AS whole,
        arrayMap((weight, number) -> weight / number, held, bins.3) AS each,
        {each quantiles, : arrayFirstIndex((until, one) -> until - one / 2 >= {q} * whole - 1e-9, upto, each) AS {name}_at end}
    FROM grouped
),
answered AS (
    SELECT
        {by} bucket, part, stored_, whole,
        {each quantiles, : multiIf(
            {name}_at = 0, high[-1],
            {name}_at > 1 AND {q} * whole < upto[{name}_at] - held[{name}_at] + each[{name}_at] / 2,
            high[{name}_at - 1] + (low[{name}_at] - high[{name}_at - 1])
            * greatest(0, ({q} * whole - upto[{name}_at] + held[{name}_at]) / each[{name}_at] + 0.5),
            low[{name}_at] + (high[{name}_at] - low[{name}_at]) * least(
                1, greatest(
                    0, ({q} * whole - upto[{name}_at] + held[{name}_at] - each[{name}_at] / 2)
                    / greatest(held[{name}_at] - each[{name}_at], each[{name}_at])
                )
            )
        ) AS {name}_ms end}
    FROM ranked
)
SELECT
    {by} bucket, part, stored_ AS stored, whole AS requests, {each quantiles, : {name}_ms end}
FROM answered

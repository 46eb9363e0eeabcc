-- As for DuckDB.
WITH cut AS (
    SELECT
        {by} weight,
        assumeNotNull(duration_ms) - {cut:Float64} * coalesce(
            multiIf(
                {each stages, : {stage:String} = '{stage}', {column} end},
                stages[{stage:String}]
            ), 0
        ) AS ms
    FROM {requests}
    WHERE duration_ms >= 0
),
binned AS (
    SELECT {by} weight, ms, if(ms > 0, toInt64(floor(ln(ms) * 100)), -100000) AS bin FROM cut
),
placed AS (
    SELECT
        {by} bin, here, sum(here) OVER (PARTITION BY {by} 1 ORDER BY bin) - here AS before,
        sum(here) OVER (PARTITION BY {by} 1) AS whole
    FROM (SELECT {by} bin, sum(weight) AS here FROM binned GROUP BY ALL)
),
wanted AS (
    SELECT toString(tuple({by} bin)) AS place, before, whole
    FROM placed
    WHERE
        (before <= 0.500001 * whole AND before + here >= 0.499999 * whole)
        OR (before <= 0.950001 * whole AND before + here >= 0.949999 * whole)
        OR (before <= 0.990001 * whole AND before + here >= 0.989999 * whole)
),
ranked AS (
    SELECT
        {by} ms, (before + sum(weight) OVER (PARTITION BY {by} bin ORDER BY ms)) / whole + 1e-9 AS below
    FROM (SELECT {by} bin, ms, weight, toString(tuple({by} bin)) AS place FROM binned) AS each
    INNER JOIN wanted ON each.place = wanted.place
)
SELECT
    {by} [minIf(ms, below >= 0.5), minIf(ms, below >= 0.95), minIf(ms, below >= 0.99)] AS quantiles
FROM ranked
GROUP BY ALL

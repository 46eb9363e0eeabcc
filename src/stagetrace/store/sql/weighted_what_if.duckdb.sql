-- As `what_if`, of requests that do not all stand for equally many: the least duration that so many requests did not exceed.
-- Only the bins of 1 % in which these lie are put in order: to sort all requests would take three times the memory.
WITH cut AS NOT MATERIALIZED (
    SELECT
        {by} weight,
        duration_ms - $cut * coalesce(
            CASE $stage
                {each stages : WHEN '{stage}' THEN {column} end}
                ELSE stages[$stage]
            END, 0
        ) AS ms
    FROM {requests}
    WHERE duration_ms >= 0
),
binned AS NOT MATERIALIZED (
    SELECT {by} weight, ms, CASE WHEN ms > 0 THEN floor(ln(ms) * 100)::BIGINT ELSE -100000 END AS bin FROM cut
),
placed AS (
    SELECT
        {by} bin, here, sum(here) OVER (PARTITION BY {by} 1 ORDER BY bin) - here AS before,
        sum(here) OVER (PARTITION BY {by} 1) AS whole
    FROM (SELECT {by} bin, sum(weight) AS here FROM binned GROUP BY ALL)
),
wanted AS (
    SELECT row({by} bin) AS place, before, whole
    FROM placed
    WHERE
        (before <= 0.500001 * whole AND before + here >= 0.499999 * whole)
        OR (before <= 0.950001 * whole AND before + here >= 0.949999 * whole)
        OR (before <= 0.990001 * whole AND before + here >= 0.989999 * whole)
),
ranked AS (
    SELECT
        {by} ms,
        -- A little more, since sums of fractions may fall short by a rounding.
        (before + sum(weight) OVER (PARTITION BY {by} bin ORDER BY ms)) / whole + 1e-9 AS below
    FROM (SELECT {by} bin, ms, weight, row({by} bin) AS place FROM binned) AS each
    JOIN wanted ON each.place IS NOT DISTINCT FROM wanted.place
)
SELECT
    {by} [
        min(ms) FILTER (WHERE below >= 0.5), min(ms) FILTER (WHERE below >= 0.95), min(ms) FILTER (WHERE below >= 0.99)
    ] AS quantiles
FROM ranked
GROUP BY ALL

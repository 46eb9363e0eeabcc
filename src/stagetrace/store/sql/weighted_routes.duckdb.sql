-- Quantiles of the durations in `routes` whose requests do not all stand for equally many: the least duration that so many
-- requests did not exceed.
SELECT {by} [min(duration_ms) FILTER (WHERE below >= 0.5), min(duration_ms) FILTER (WHERE below >= 0.99)] AS quantiles
FROM (
    SELECT
        {by} duration_ms,
        -- A little more, since sums of fractions may fall short by a rounding.
        sum(weight) OVER (each ORDER BY duration_ms ROWS UNBOUNDED PRECEDING) / sum(weight) OVER each + 1e-9 AS below
    FROM {verdicts}
    WINDOW each AS (PARTITION BY {by} true)
)
GROUP BY ALL

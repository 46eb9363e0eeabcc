-- Quantiles of `stages` and `own_stages`, of requests that do not all stand for equally many: as in `weighted_routes`. Those
-- of the whole have no stage.
SELECT
    {by} each_stage,
    [
        min(ms) FILTER (WHERE below >= 0.5), min(ms) FILTER (WHERE below >= 0.95), min(ms) FILTER (WHERE below >= 0.99)
    ] AS quantiles
FROM (
    SELECT
        {by} one.key AS each_stage, one.value AS ms,
        sum(weight) OVER (each ORDER BY one.value ROWS UNBOUNDED PRECEDING) / sum(weight) OVER each + 1e-9 AS below
    FROM (
        SELECT {by} weight, unnest(list_prepend({'key': NULL, 'value': duration_ms}, map_entries(stages))) AS one
        FROM {requests}
    )
    WINDOW each AS (PARTITION BY {by} one.key)
)
GROUP BY ALL

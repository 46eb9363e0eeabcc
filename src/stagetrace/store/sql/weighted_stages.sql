-- Quantiles of `stages`, of requests that do not all stand for equally many: as in `weighted_routes`.
SELECT
    service, path, model, stage,
    [
        min(ms) FILTER (WHERE below >= 0.5), min(ms) FILTER (WHERE below >= 0.95), min(ms) FILTER (WHERE below >= 0.99)
    ] AS quantiles
FROM (
    SELECT
        service, path, model, one.key AS stage, one.value AS ms,
        sum(weight) OVER (each ORDER BY one.value ROWS UNBOUNDED PRECEDING) / sum(weight) OVER each + 1e-9 AS below
    FROM (
        SELECT
            service, coalesce(route, name) AS path, model, weight,
            unnest(list_prepend({'key': NULL, 'value': duration_ms}, map_entries(stages))) AS one
        FROM requests
    )
    WINDOW each AS (PARTITION BY service, path, model, one.key)
)
GROUP BY service, path, model, stage

-- Of each service, route and model: every stage's exact quantiles and its share of the requests' whole time; first, with
-- no stage, the requests themselves. Counts and shares are by weight; quantiles where all requests have the same one.
WITH timed AS (
    SELECT
        service, coalesce(route, name) AS path, model, duration_ms, network_receive_ms, queue_ms, preprocess_ms, handler_ms,
        inference_ms, postprocess_ms, network_send_ms, weight, sampling_probability, upgraded, breached
    FROM requests
),
measured AS (
    -- In columns until each group is one row: a row for each stage of each request would take eight times the memory. In
    -- one list, as each quantile by itself would keep all the values.
    SELECT
        service, path, model, sum(weight) AS requests, sum(weight * duration_ms) AS whole, count(*) AS stored,
        bool_or(sampling_probability IS NOT NULL OR coalesce(upgraded, false)) AS sampled,
        sampled AND (
            coalesce(max(sampling_probability), 0) = 0
            OR bool_or(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false))
        ) AS unknown,
        min(weight) < max(weight) AS uneven,
        struct_pack(
            count := sum(CASE WHEN COLUMNS('_ms$') IS NOT NULL THEN weight END),
            quantiles := quantile_cont(COLUMNS('_ms$'), [0.5, 0.95, 0.99]),
            most := max(COLUMNS('_ms$')),
            total := sum(weight * COLUMNS('_ms$'))
        )
    FROM timed
    GROUP BY service, path, model
),
standard AS (
    SELECT service, path, model, requests, whole, stored, sampled, unknown, uneven, nullif(stage, 'request') AS stage, ms
    FROM measured UNPIVOT (
        ms FOR stage IN (
            duration_ms AS "request", network_receive_ms AS "network.receive", queue_ms AS "queue",
            preprocess_ms AS "preprocess", handler_ms AS "handler", inference_ms AS "inference",
            postprocess_ms AS "postprocess", network_send_ms AS "network.send"
        )
    )
),
-- Those that a program defined itself have no columns: out of the map of the requests that have any.
own AS (
    SELECT service, path, model, weight, one.key AS stage, one.value AS own_ms
    FROM (
        SELECT service, coalesce(route, name) AS path, model, weight, unnest(map_entries(stages)) AS one
        FROM requests
        WHERE other_ms IS NOT NULL
    )
    WHERE one.key NOT IN (
        'network.receive', 'queue', 'preprocess', 'handler', 'inference', 'postprocess', 'network.send'
    )
),
measured_own AS (
    SELECT
        service, path, model, stage,
        struct_pack(
            count := sum(weight), quantiles := quantile_cont(own_ms, [0.5, 0.95, 0.99]), most := max(own_ms),
            total := sum(weight * own_ms)
        ) AS ms
    FROM own
    GROUP BY service, path, model, stage
),
parts AS (
    FROM standard
    UNION ALL BY NAME
    SELECT all_of.*, measured_own.stage, measured_own.ms
    FROM measured_own
    JOIN (SELECT service, path, model, requests, whole, stored, sampled, unknown, uneven FROM measured) AS all_of
        ON measured_own.service = all_of.service AND measured_own.path = all_of.path
        AND measured_own.model IS NOT DISTINCT FROM all_of.model
)
SELECT
    service, path, model, requests, stored, sampled, unknown, uneven, stage, ms.count AS count, ms.quantiles AS quantiles,
    ms.most AS max_ms,
    CASE WHEN whole > 0 THEN ms.total / whole END AS share
FROM parts
WHERE ms.count > 0
ORDER BY
    service, path, model NULLS FIRST, stage IS NOT NULL,
    coalesce(
        list_position(
            ['network.receive', 'queue', 'preprocess', 'handler', 'inference', 'postprocess', NULL, 'network.send'], stage
        ),
        7
    ),
    stage

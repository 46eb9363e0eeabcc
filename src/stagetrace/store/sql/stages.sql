-- Of each service, route and model: every stage's exact quantiles and its share of the requests' whole time; first, with
-- no stage, the requests themselves.
WITH timed AS (
    SELECT
        service, coalesce(route, name) AS path, model, duration_ms, network_receive_ms, queue_ms, preprocess_ms, handler_ms,
        inference_ms, postprocess_ms, network_send_ms, other_ms
    FROM requests
),
measured AS (
    -- In columns until each group is one row: a row for each stage of each request would take eight times the memory. In
    -- one list, as each quantile by itself would keep all the values.
    SELECT
        service, path, model, count(*) AS requests, sum(duration_ms) AS whole,
        struct_pack(
            count := count(COLUMNS('_ms$')),
            quantiles := quantile_cont(COLUMNS('_ms$'), [0.5, 0.95, 0.99]),
            most := max(COLUMNS('_ms$')),
            total := sum(COLUMNS('_ms$'))
        )
    FROM timed
    GROUP BY service, path, model
)
SELECT
    service, path, model, requests, nullif(apart.stage, 'request') AS stage, ms.count AS count, ms.quantiles[1] AS p50_ms,
    ms.quantiles[2] AS p95_ms, ms.quantiles[3] AS p99_ms, ms.most AS max_ms,
    CASE WHEN whole > 0 THEN ms.total / whole END AS share
FROM measured UNPIVOT (
    ms FOR stage IN (
        duration_ms AS "request", network_receive_ms AS "network.receive", queue_ms AS "queue", preprocess_ms AS "preprocess",
        handler_ms AS "handler", inference_ms AS "inference", postprocess_ms AS "postprocess",
        network_send_ms AS "network.send", other_ms AS "other"
    )
) AS apart
WHERE ms.count > 0
ORDER BY
    service, path, model NULLS FIRST,
    list_position(
        ['request', 'network.receive', 'queue', 'preprocess', 'handler', 'inference', 'postprocess', 'network.send', 'other'],
        apart.stage
    )

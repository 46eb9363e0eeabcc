-- Of each service, route and model: every stage's exact quantiles and its share of the requests' whole time; first, with
-- no stage, the requests themselves.
WITH named AS (
    SELECT *, coalesce(route, name) AS path FROM requests
),
whole AS (
    SELECT service, path, model, count(*) AS requests, sum(duration_ms) AS total_ms FROM named GROUP BY ALL
),
measured AS (
    UNPIVOT (
        SELECT
            service, path, model, duration_ms, network_receive_ms, queue_ms, preprocess_ms, handler_ms, inference_ms,
            postprocess_ms, network_send_ms, other_ms
        FROM named
    )
    ON
        duration_ms AS "request", network_receive_ms AS "network.receive", queue_ms AS "queue", preprocess_ms AS "preprocess",
        handler_ms AS "handler", inference_ms AS "inference", postprocess_ms AS "postprocess",
        network_send_ms AS "network.send", other_ms AS "other"
    INTO NAME stage VALUE ms
)
SELECT
    service, path, whole.model, whole.requests, nullif(measured.stage, 'request') AS stage, count(*) AS count,
    quantile_cont(ms, 0.5) AS p50_ms, quantile_cont(ms, 0.95) AS p95_ms, quantile_cont(ms, 0.99) AS p99_ms,
    max(ms) AS max_ms, CASE WHEN total_ms > 0 THEN sum(ms) / total_ms END AS share
FROM measured JOIN whole USING (service, path)
WHERE measured.model IS NOT DISTINCT FROM whole.model
GROUP BY service, path, whole.model, whole.requests, total_ms, measured.stage
ORDER BY
    service, path, whole.model NULLS FIRST,
    list_position(
        ['request', 'network.receive', 'queue', 'preprocess', 'handler', 'inference', 'postprocess', 'network.send', 'other'],
        measured.stage
    )

-- Of each service, route, model and objective: how many requests, how fast they were and how many broke the promise.
SELECT
    service, path, model, objective, requests, judged, breaches, errors, quantiles[1] AS p50_ms, quantiles[2] AS p99_ms, max_ms
FROM (
    -- One list of quantiles: apart, each would keep all the values.
    SELECT
        service, coalesce(route, name) AS path, model, objective, count(*) AS requests,
        count(*) FILTER (WHERE breached IS NOT NULL) AS judged, count(*) FILTER (WHERE breached) AS breaches,
        count(*) FILTER (WHERE status = 'ERROR' OR http_status >= 500) AS errors,
        quantile_cont(duration_ms, [0.5, 0.99]) AS quantiles, max(duration_ms) AS max_ms
    FROM requests
    GROUP BY service, path, model, objective
)
ORDER BY breaches DESC, requests DESC, service, path, model NULLS FIRST, objective NULLS FIRST

-- The series of the counter `sla.requests`, out of the exporter's table of sums: each value with the first and last time at which
-- it was so. A point that was inserted twice is one. Increments (temporality 1) are summed up, by time.
WITH points AS (
    SELECT DISTINCT
        ServiceName AS service,
        toString(
            cityHash64(arraySort(mapKeys(ResourceAttributes)), arraySort(mapValues(ResourceAttributes)))
        ) AS instance,
        AggregationTemporality = 1 AS is_delta,
        toUnixTimestamp64Nano(toDateTime64(StartTimeUnix, 9)) AS start_ns,
        if(mapContains(Attributes, 'http.route'), Attributes['http.route'], Attributes['rpc.method']) AS route,
        Attributes['sla.objective'] AS objective, Attributes['sla.verdict'] AS verdict,
        toString(
            mapFilter(
                (key, value) -> key NOT IN ('http.route', 'rpc.method', 'sla.objective', 'sla.verdict'), Attributes
            )
        ) AS rest,
        toInt64(Value) AS amount, toUnixTimestamp64Nano(toDateTime64(TimeUnix, 9)) AS time_ns
    FROM {table}
    WHERE MetricName = 'sla.requests' AND IsMonotonic AND AggregationTemporality IN (1, 2)
        AND TimeUnix >= fromUnixTimestamp64Nano({since:Int64}, 'UTC')
        AND TimeUnix <= fromUnixTimestamp64Nano({until:Int64}, 'UTC')
        AND ({service:Nullable(String)} IS NULL OR ServiceName = {service:Nullable(String)})
),
summed AS (
    SELECT
        *, if(
            is_delta, sum(amount) OVER (
                PARTITION BY service, instance, route, objective, verdict, rest, is_delta ORDER BY time_ns
            ), amount
        ) AS value,
        if(is_delta, 0, start_ns) AS start
    FROM points
)
SELECT
    service, instance, start, route, objective, verdict, rest, value, min(time_ns) AS first, max(time_ns) AS last,
    min(start_ns) AS began
FROM summed
GROUP BY service, instance, start, route, objective, verdict, rest, value
ORDER BY service, instance, start, route, objective, verdict, rest, last

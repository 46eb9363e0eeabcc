-- As for DuckDB.
WITH grouped AS (
    SELECT
        {by} resource, intDiv(start_unix_nano, {width:Int64}) AS first, intDiv(end_unix_nano, {width:Int64}) AS last,
        sum(weight) AS requests, coalesce(sum(process_cpu_ms), 0) AS cpu_ms, sum(weight * (start_unix_nano % {width:Int64})) AS start_ns,
        sum(weight * (end_unix_nano % {width:Int64})) AS end_ns,
        sum(weight * duration_ms) AS whole_ms, coalesce(sum(weight * queue_ms), 0) AS queue_ms,
        coalesce(sum(weight * inference_ms), 0) AS inference_ms,
        coalesce(sumIf(weight, duration_ms <= {within_ms:Float64}), 0) AS within,
        coalesce(sumIf(weight, breached IS NOT NULL), 0) AS judged, coalesce(sumIf(weight, breached), 0) AS breaches
    FROM {requests}
    WHERE service = {service:String} AND end_unix_nano >= start_unix_nano
    GROUP BY ALL
)
SELECT
    {by} first, last, coalesce(
        nullIf({resource}['service.instance.id'], ''),
        nullIf(
            arrayStringConcat(arrayFilter(x -> x != '', [{resource}['host.name'], {resource}['process.pid']]), ':'), ''
        )
    ) AS instance,
    sum(grouped.requests) AS requests, sum(grouped.start_ns) AS start_ns, sum(grouped.end_ns) AS end_ns,
    sum(grouped.whole_ms) AS whole_ms, sum(grouped.queue_ms) AS queue_ms, sum(grouped.inference_ms) AS inference_ms,
    sum(grouped.within) AS within, sum(grouped.cpu_ms) AS cpu_ms, sum(grouped.judged) AS judged, sum(grouped.breaches) AS breaches
FROM grouped
GROUP BY ALL

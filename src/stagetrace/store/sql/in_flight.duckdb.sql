-- Requests of one service, of each instance by itself, by the buckets of time, `width` ns each, in which they begin and end,
-- with what gives the exact time that they spent in each: sums of how far into its bucket the start lies, and the end;
-- `cpu_ms` is of the process that served them. Those that end before they begin are not there.
-- Resources are few, and long: they are read once they are grouped by.
WITH grouped AS (
    SELECT
        {by} of_resource, start_unix_nano // $width AS first, end_unix_nano // $width AS last, sum(weight) AS requests,
        coalesce(sum(process_cpu_ms), 0) AS cpu_ms, sum(weight * (start_unix_nano % $width)) AS start_ns,
        sum(weight * (end_unix_nano % $width)) AS end_ns, sum(weight * duration_ms) AS whole_ms, coalesce(sum(weight * queue_ms), 0) AS queue_ms,
        coalesce(sum(weight * inference_ms), 0) AS inference_ms,
        coalesce(sum(weight) FILTER (WHERE duration_ms <= $within_ms), 0) AS within,
        coalesce(sum(weight) FILTER (WHERE breached IS NOT NULL), 0) AS judged,
        coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches
    FROM {requests}
    WHERE service = $service AND end_unix_nano >= start_unix_nano
    GROUP BY ALL
)
SELECT
    {by} first, last, coalesce(
        {resource}['service.instance.id'],
        nullif(concat_ws(':', {resource}['host.name'], {resource}['process.pid']), '')
    ) AS instance,
    sum(grouped.requests) AS requests, sum(grouped.start_ns) AS start_ns, sum(grouped.end_ns) AS end_ns,
    sum(grouped.whole_ms) AS whole_ms, sum(grouped.queue_ms) AS queue_ms, sum(grouped.inference_ms) AS inference_ms,
    sum(grouped.within) AS within, sum(grouped.cpu_ms) AS cpu_ms, sum(grouped.judged) AS judged, sum(grouped.breaches) AS breaches
FROM grouped
GROUP BY ALL

-- Requests of one service by the buckets of time, `width` ns each, in which they begin and end, with what gives the exact
-- time that they spent in each: sums of how far into its bucket the start lies, and the end. Those that end before they
-- begin are not there.
SELECT
    {by} start_unix_nano // $width AS first, end_unix_nano // $width AS last, sum(weight) AS requests,
    sum(weight * (start_unix_nano % $width)) AS start_ns, sum(weight * (end_unix_nano % $width)) AS end_ns,
    sum(weight * duration_ms) AS whole_ms, coalesce(sum(weight * queue_ms), 0) AS queue_ms,
    coalesce(sum(weight * inference_ms), 0) AS inference_ms,
    coalesce(sum(weight) FILTER (WHERE duration_ms <= $within_ms), 0) AS within,
    coalesce(sum(weight) FILTER (WHERE breached IS NOT NULL), 0) AS judged,
    coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches
FROM {requests}
WHERE service = $service AND end_unix_nano >= start_unix_nano
GROUP BY ALL

-- How many requests there are in a box of when they began (ns) and how long they took (ms), and how many are not in it.
SELECT
    start_unix_nano >= $box_since AND start_unix_nano < $box_until
    AND duration_ms >= $box_least AND duration_ms < $box_most AS inside,
    sum(weight) AS requests, coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches, count(*) AS stored,
    {sampled} AS sampled, {unknown} AS unknown
FROM {requests}
GROUP BY ALL

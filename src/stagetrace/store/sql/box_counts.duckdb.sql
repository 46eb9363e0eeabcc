-- How many requests there are in a box of when they began (ns) and how long they took (ms), and how many are not in it.
SELECT
    start_unix_nano >= $box_since AND start_unix_nano < $box_until
    AND duration_ms >= $box_least AND duration_ms < $box_most AS inside,
    sum(weight) AS requests, coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches, count(*) AS stored,
    bool_or(sampling_probability IS NOT NULL OR coalesce(upgraded, false)) AS sampled,
    bool_or(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false)) AS unknown
FROM {requests}
GROUP BY ALL

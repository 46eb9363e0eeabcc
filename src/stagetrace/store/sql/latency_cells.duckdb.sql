-- How many requests there are by when they began and how long they took: the cells of a picture that have any. Columns are
-- `columns` buckets of `width` ns from `origin` on. Bin b is of durations from 2^(b / bins) ms on; what took less than 2^-10 ms
-- is in the lowest one. `step` bins are taken together, so that there are at most `rows` rows, from the lowest bin on.
WITH fine AS (
    SELECT
        (start_unix_nano - $origin) // $width AS bucket, floor(log2(greatest(duration_ms, 1 / 1024)) * $bins)::BIGINT AS bin,
        sum(weight) AS requests, coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches, count(*) AS stored,
        count(breached) AS judged, {sampled} AS sampled, {unknown} AS unknown
    FROM {requests}
    WHERE start_unix_nano >= $origin AND start_unix_nano < $origin + $width::BIGINT * $columns
    GROUP BY ALL
),
measured AS (
    SELECT *, min(bin) OVER () AS lowest, (max(bin) OVER () - min(bin) OVER ()) // $rows + 1 AS step FROM fine
)
SELECT
    bucket, (bin - lowest) // step AS place, lowest, step, sum(requests) AS requests, sum(breaches) AS breaches,
    sum(stored)::BIGINT AS stored, sum(judged)::BIGINT AS judged, bool_or(sampled) AS sampled, bool_or(unknown) AS unknown
FROM measured
GROUP BY ALL

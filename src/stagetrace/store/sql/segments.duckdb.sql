-- Requests of the `most` largest groups of one key (`segment`; NULL: without it), and of all others together (`place` 0), by
-- service, route and duration: in buckets 2 % wide, with the least and the greatest duration of each. Sums are by
-- weight, `squares` are those of the weights; there are `groups` groups in all.
WITH counted AS (
    SELECT
        coalesce({by} NULL)::VARCHAR AS segment, service, path,
        floor(ln(greatest(duration_ms, 1e-3)) / ln(1.02))::INTEGER AS bucket, sum(weight) AS requests,
        coalesce(sum(weight) FILTER (WHERE NOT breached), 0) AS good,
        coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches,
        coalesce(sum(weight * weight) FILTER (WHERE NOT breached), 0) AS squares_good, sum(weight * weight) AS squares,
        count(*) AS stored, min(duration_ms) AS low_ms, max(duration_ms) AS high_ms,
        coalesce(sum(overrun_ms) FILTER (WHERE breached), 0) AS over_ms,
        {each parts, : coalesce(sum(weight * {column}), 0) AS {part}_sum end},
        {sampled} AS sampled, {unknown} AS unknown
    FROM {requests}
    GROUP BY ALL
),
sized AS (SELECT segment, sum(requests) AS size FROM counted GROUP BY segment),
ranked AS (
    SELECT
        segment, row_number() OVER (ORDER BY size DESC, segment IS NULL, segment) AS place, count(*) OVER () AS groups
    FROM sized
),
kept AS (
    SELECT
        counted.* EXCLUDE (segment), groups, CASE WHEN place <= $most THEN place ELSE 0 END AS place,
        CASE WHEN place <= $most THEN counted.segment END AS segment
    FROM counted JOIN ranked ON counted.segment IS NOT DISTINCT FROM ranked.segment
)
SELECT
    segment, place, max(groups) AS groups, service, path, bucket, sum(requests) AS requests, sum(good) AS good,
    sum(breaches) AS breaches, sum(squares_good) AS squares_good, sum(squares) AS squares, sum(stored)::BIGINT AS stored,
    min(low_ms) AS low_ms, max(high_ms) AS high_ms, sum(over_ms) AS over_ms,
    {each parts, : sum({part}_sum) AS {part}_sum end},
    bool_or(sampled) AS sampled, bool_or(unknown) AS unknown
FROM kept
GROUP BY segment, place, service, path, bucket

-- As `histograms`, of each stage in the requests that have it.
WITH sized AS (
    SELECT *, CASE WHEN size > 0 THEN floor(log2(size) / 2)::BIGINT WHEN size = 0 THEN -1 END AS input_size
    FROM (SELECT *, CASE WHEN $sizes THEN coalesce(request_bytes, batch_size) END AS size FROM {requests})
),
-- Not by a list for each request, which takes longer.
timed AS (
    {each stages UNION ALL : SELECT {by} input_size, weight, '{stage}' AS stage, {column} AS ms FROM sized end}
    UNION ALL SELECT {by} input_size, weight, '(others)' AS stage, other_ms AS ms FROM sized
)
SELECT
    {by} input_size, stage, CASE WHEN ms > 0 THEN floor(log2(ms) * $bins)::BIGINT END AS bin,
    sum(weight) AS weight, sum(weight * weight) AS squares, count(*) AS stored, min(ms) AS low, max(ms) AS high
FROM timed
WHERE ms IS NOT NULL
GROUP BY ALL
LIMIT $most

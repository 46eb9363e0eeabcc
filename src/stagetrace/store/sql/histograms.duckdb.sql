-- How long requests took, in bins of equal ratio, by the size of their input: of each bin the weight, its squares, the least
-- and the greatest value. `input_size`: n where the body's bytes, else the batch, lie from 4^n to below 4^(n + 1); -1: none.
SELECT
    {by} CASE WHEN size > 0 THEN floor(log2(size) / 2)::BIGINT WHEN size = 0 THEN -1 END AS input_size,
    CASE WHEN duration_ms > 0 THEN floor(log2(duration_ms) * $bins)::BIGINT END AS bin,
    sum(weight) AS weight, sum(weight * weight) AS squares, count(*) AS stored,
    min(duration_ms) AS low, max(duration_ms) AS high,
    {sampled} AS sampled, {unknown} AS unknown
FROM (SELECT *, CASE WHEN $sizes THEN coalesce(request_bytes, batch_size) END AS size FROM {requests})
GROUP BY ALL
LIMIT $most

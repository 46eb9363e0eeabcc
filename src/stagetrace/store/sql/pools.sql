-- What requests of a service wait for in stage `queue`, how often, for how long, and with how many threads: waits that begin
-- within [$3, $4), one in so many ($2), since attributes are made of a span's bytes.
SELECT
    attributes['queue.reason'] AS reason, max(try_cast(attributes['queue.pool_size'] AS BIGINT)) AS pool_size,
    count(*) * $2 AS waits, sum(duration_ms) * $2 AS waited_ms
FROM spans
WHERE stage = 'queue' AND service = $1 AND start_unix_nano >= $3 AND start_unix_nano < $4 AND hash(span_id) % $2 = 0
GROUP BY reason
ORDER BY waits DESC, reason

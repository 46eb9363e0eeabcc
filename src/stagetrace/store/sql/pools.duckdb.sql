-- What requests of a service wait for in stage `queue`, how often, for how long, and with how many threads: waits that begin
-- within [since, until), one in so many (`one_in`), since attributes are made of a span's bytes.
SELECT
    attributes['queue.reason'] AS reason, max(try_cast(attributes['queue.pool_size'] AS BIGINT)) AS pool_size,
    count(*) * $one_in AS waits, sum(duration_ms) * $one_in AS waited_ms
FROM {spans}
WHERE stage = 'queue' AND service = $service AND start_unix_nano >= $since AND start_unix_nano < $until
    AND hash(span_id) % $one_in = 0
GROUP BY reason
ORDER BY waits DESC, reason

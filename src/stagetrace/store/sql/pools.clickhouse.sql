-- As for DuckDB; by another hash, so that others come.
SELECT
    if(mapContains(attributes, 'queue.reason'), attributes['queue.reason'], NULL) AS reason,
    max(toInt64OrNull(attributes['queue.pool_size'])) AS pool_size,
    count() * {one_in:UInt64} AS waits, sum(duration_ms) * {one_in:UInt64} AS waited_ms
FROM {spans}
WHERE stage = 'queue' AND service = {service:String} AND start_unix_nano >= {since:Int64} AND start_unix_nano < {until:Int64}
    AND cityHash64(span_id) % {one_in:UInt64} = 0
GROUP BY reason
ORDER BY waits DESC, reason

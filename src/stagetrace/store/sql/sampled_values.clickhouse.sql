-- As for DuckDB, of others where `one_in` is more than 1.
SELECT {by} count() AS stored, sum(weight) AS requests
FROM {requests}
WHERE service = {service:String} AND start_unix_nano >= {since:Int64} AND start_unix_nano < {until:Int64}
    AND cityHash64(start_unix_nano) % {one_in:UInt64} = 0
GROUP BY ALL
LIMIT 100000

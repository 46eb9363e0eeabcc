-- As for DuckDB, of others where `one_in` is more than 1.
SELECT {by} count() AS stored, sum(weight) AS requests
FROM {requests}
WHERE service = {service:String} AND cityHash64(span_id) % {one_in:UInt64} = 0
GROUP BY ALL
LIMIT 100000

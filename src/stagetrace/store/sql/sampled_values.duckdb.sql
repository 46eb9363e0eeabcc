-- How many requests of one service have which values, of one request in `one_in`: for attributes that are too dear to read
-- of all.
SELECT {by} count(*) AS stored, sum(weight) AS requests
FROM {requests}
WHERE service = $service AND hash(span_id) % $one_in = 0
GROUP BY ALL
LIMIT 100000

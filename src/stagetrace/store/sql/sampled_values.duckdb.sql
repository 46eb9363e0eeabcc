-- How many requests of one service that begin within [since, until) have which values, of one in `one_in`: for attributes
-- that are too dear to read of all.
SELECT {by} count(*) AS stored, sum(weight) AS requests
FROM {requests}
WHERE service = $service AND start_unix_nano >= $since AND start_unix_nano < $until
    AND hash(start_unix_nano) % $one_in = 0
GROUP BY ALL
LIMIT 100000

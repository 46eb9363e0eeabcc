-- Which versions each model has had: how many requests of each, by weight, and when its first one and its last one began.
SELECT {by} sum(weight) AS requests, min(start_unix_nano) AS first, max(start_unix_nano) AS last
FROM {requests}
GROUP BY ALL
ORDER BY requests DESC
LIMIT 1000

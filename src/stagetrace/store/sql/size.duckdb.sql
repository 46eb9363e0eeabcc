-- How many requests there are, `most` if there are more.
SELECT count(*) AS stored
FROM (SELECT 1 FROM {requests} LIMIT $most)

-- The groups with most requests, at most `most`, and how many groups there are in all.
SELECT {by} count(*) AS stored, count(*) OVER () AS groups
FROM {requests}
GROUP BY ALL
ORDER BY stored DESC
LIMIT $most

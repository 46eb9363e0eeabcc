-- As for DuckDB.
SELECT stage
FROM (SELECT DISTINCT arrayJoin(mapKeys(stages)) AS stage FROM {requests})
ORDER BY stage

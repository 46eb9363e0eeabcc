-- The names of all stages.
SELECT stage
FROM (SELECT DISTINCT unnest(map_keys(stages)) AS stage FROM {requests})
ORDER BY stage

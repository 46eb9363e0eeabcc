-- How requests rank by one of them: of all, and of those with each stage, how many there are, and how many took less than it
-- did (`$NAME_ms`). `stored` counts rows, all else is by weight. One scan, and one row.
SELECT
    {by} count(*) AS stored, sum(weight) AS requests,
    {sampled} AS sampled, {unknown} AS unknown,
    coalesce(sum(weight) FILTER (WHERE duration_ms < $duration_ms), 0) AS duration_below,
    {each parts, : count({column}) AS {part}_stored,
    coalesce(sum(weight) FILTER (WHERE {column} IS NOT NULL), 0) AS {part}_requests,
    coalesce(sum(weight) FILTER (WHERE {column} < ${column}), 0) AS {part}_below end}
FROM {requests}
GROUP BY ALL

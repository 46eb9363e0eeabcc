-- How long each stage of the requests of each group took, by weight; `rest_ms`: what no stage tells of their durations.
SELECT
    {by} coalesce(breached, false) AS is_breach,
    {each parts, : coalesce(sum(weight * greatest({column}, 0)), 0) AS {part}_total_ms end},
    coalesce(sum(weight * greatest(0, duration_ms - (
        {each parts + : coalesce({column}, 0) end}
    ))), 0) AS rest_ms,
    count(*) AS stored
FROM {requests}
GROUP BY ALL
ORDER BY stored DESC
LIMIT $most

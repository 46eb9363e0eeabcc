-- Of each incident (number, from 0): how many of its breaches have which stage and cause, by how much they were over what was
-- allowed in all, and the trace of the worst one. An incident is an element of the five lists; `excluded` as in `incidents`.
WITH listed AS (
    SELECT
        unnest(range(len($starts::BIGINT[]))) AS incident, unnest($services::VARCHAR[]) AS service,
        unnest($paths::VARCHAR[]) AS path, unnest($objectives::VARCHAR[]) AS whole, unnest($starts::BIGINT[]) AS since,
        unnest($ends::BIGINT[]) AS until
)
SELECT
    incident, stage, cause, count(*) AS breaches, coalesce(sum(overrun_ms), 0) AS over_ms,
    arg_max(trace_id, (coalesce(overrun_ms, 0), -start_unix_nano, trace_id)) AS trace_id
FROM {verdicts} AS request
JOIN listed USING (service, path)
WHERE
    breached AND start_unix_nano >= since AND start_unix_nano < until
    AND concat_ws(' for ', objective, target) = whole
    AND len(list_filter($excluded::BIGINT[], lambda edge: edge <= start_unix_nano)) % 2 = 0
GROUP BY incident, stage, cause

-- Of each verdict, stage and cause: how many requests, by how much they were over what was allowed, and the newest start.
SELECT
    {by} CASE WHEN breached THEN 'breach' WHEN NOT breached THEN 'good' WHEN verdict = 'excluded' THEN 'excluded' END AS word,
    coalesce(
        verdict, breached::VARCHAR,
        coalesce(
            {each parts, : {column} end}
        )::VARCHAR
    ) IS NOT NULL AS is_recorded,
    CASE WHEN breached THEN stage END AS breach_stage,
    CASE WHEN breached THEN cause END AS breach_cause,
    sum(weight) AS requests,
    coalesce(sum(overrun_ms) FILTER (breached), 0) AS over_ms,
    max(start_unix_nano) AS newest,
    count(*) AS stored,
    {sampled} AS is_sampled,
    min(sampling_probability) AS least,
    max(sampling_probability) AS most
FROM {requests}
GROUP BY ALL

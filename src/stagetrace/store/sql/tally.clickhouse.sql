-- As for DuckDB. A sum of no row is NULL where the column may be, and not 0.
SELECT
    {by} multiIf(breached, 'breach', NOT breached, 'good', verdict = 'excluded', 'excluded', NULL) AS word,
    CAST(
        isNotNull(verdict) OR isNotNull(breached) OR isNotNull(
            coalesce(
                {each parts, : {column} end}
            )
        ), 'Bool'
    ) AS is_recorded,
    if(breached, stage, NULL) AS breach_stage,
    if(breached, cause, NULL) AS breach_cause,
    sum(weight) AS requests,
    coalesce(sumIf(overrun_ms, breached), 0) AS over_ms,
    max(start_unix_nano) AS newest,
    count() AS stored,
    {sampled} AS is_sampled,
    min(sampling_probability) AS least,
    max(sampling_probability) AS most
FROM {requests}
GROUP BY ALL

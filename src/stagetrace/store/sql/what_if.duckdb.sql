-- Quantiles of the durations of requests if one stage took less by the part `cut`: p50, p95 and p99, exactly, of requests
-- that all stand for equally many.
SELECT
    {by} quantile_cont(
        duration_ms - $cut * coalesce(
            CASE $stage
                {each stages : WHEN '{stage}' THEN {column} end}
                ELSE stages[$stage]
            END, 0
        ), [0.5, 0.95, 0.99]
    ) AS quantiles
FROM {requests}
WHERE duration_ms >= 0
GROUP BY ALL

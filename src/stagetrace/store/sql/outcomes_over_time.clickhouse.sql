-- As for DuckDB. A sum of no row is NULL where the column may be, and not 0.
WITH counted AS (
    SELECT
        service, path, objective, target, is_shown, intDiv(start_unix_nano, {width:Int64}) AS bucket, coalesce(breached, false) AS is_breach,
        if(breached, stage, NULL) AS breach_stage, if(breached, cause, NULL) AS breach_cause,
        sum(weight) AS requests, coalesce(sumIf(weight, NOT breached), 0) AS good,
        coalesce(sumIf(weight, breached), 0) AS breaches,
        coalesce(sumIf(weight, breached IS NULL AND verdict = 'excluded'), 0) AS excluded,
        coalesce(sumIf(weight * (weight - 1), NOT breached), 0) AS spread,
        coalesce(1 / minIf(sampling_probability, sampling_probability > 0), 1) AS most,
        coalesce(sumIf(overrun_ms, breached), 0) AS over_ms, toInt64(count()) AS stored,
        {sampled} AS sampled, {unknown} AS unknown,
        min(start_unix_nano) AS first_start, max(start_unix_nano) AS last_start
    FROM {verdicts}
    GROUP BY ALL
),
summed AS (
    SELECT
        *, sum(breaches) OVER one AS all_breaches, sum(requests) OVER one AS all_requests,
        sum(CASE WHEN is_shown THEN breaches ELSE 0 END) OVER (PARTITION BY is_breach, breach_stage, breach_cause) AS of_kind
    FROM counted
    WINDOW one AS (PARTITION BY service, path, objective, target)
),
ranked AS (
    SELECT
        *, dense_rank() OVER (ORDER BY all_breaches DESC, all_requests DESC, service, path, objective, target) > {objectives:UInt32}
            AS is_rest,
        -- The first place is that of requests that are no breach.
        dense_rank() OVER (ORDER BY is_breach, of_kind DESC, breach_stage, breach_cause) > {kinds:UInt32} + 1 AS is_rest_kind
    FROM summed
),
folded AS (
    SELECT
        bucket, is_shown, is_rest, is_rest_kind, if(is_rest, NULL, service) AS of_service,
        if(is_rest, NULL, path) AS of_path, if(is_rest, NULL, objective) AS of_objective,
        if(is_rest, NULL, target) AS of_target, if(is_rest_kind, NULL, breach_stage) AS stage,
        if(is_rest_kind, NULL, breach_cause) AS cause, requests, good, breaches, excluded, spread, most, over_ms,
        stored, sampled, unknown, first_start, last_start
    FROM ranked
)
SELECT
    bucket, CAST(folded.is_shown, 'Bool') AS is_shown, CAST(folded.is_rest, 'Bool') AS is_rest,
    CAST(folded.is_rest_kind, 'Bool') AS is_rest_kind,
    of_service AS service, of_path AS path, of_objective AS objective, of_target AS target,
    stage, cause, sum(folded.requests) AS requests, sum(folded.good) AS good, sum(folded.breaches) AS breaches,
    sum(folded.excluded) AS excluded, sum(folded.spread) AS spread, max(folded.most) AS most, sum(folded.over_ms) AS over_ms,
    sum(folded.stored) AS stored, max(folded.sampled) AS sampled, max(folded.unknown) AS unknown,
    min(folded.first_start) AS first_unix_nano, max(folded.last_start) AS last_unix_nano
FROM folded
GROUP BY ALL

-- What became of the requests over time: of each objective of a service and path, each bucket of `width` ns (numbered from 1970
-- on) and each stage and cause of breaches, the counts that `counts` has, by how much breaches were over in all, and the first
-- and last start. Objectives beyond the `objectives` with most breaches, and stages with causes beyond the `kinds` with most,
-- come as one each: `is_rest`, `is_rest_kind`. Each request is shown (`is_shown`) under one of the objectives that judged it.
WITH counted AS (
    SELECT
        service, path, objective, target, is_shown, start_unix_nano // $width AS bucket, coalesce(breached, false) AS is_breach,
        CASE WHEN breached THEN stage END AS breach_stage, CASE WHEN breached THEN cause END AS breach_cause,
        sum(weight) AS requests, coalesce(sum(weight) FILTER (WHERE NOT breached), 0) AS good,
        coalesce(sum(weight) FILTER (WHERE breached), 0) AS breaches,
        coalesce(sum(weight) FILTER (WHERE breached IS NULL AND verdict = 'excluded'), 0) AS excluded,
        coalesce(sum(weight * (weight - 1)) FILTER (WHERE NOT breached), 0) AS spread,
        coalesce(1 / min(sampling_probability) FILTER (WHERE sampling_probability > 0), 1) AS most,
        coalesce(sum(overrun_ms) FILTER (WHERE breached), 0) AS over_ms, count(*) AS stored,
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
        *, dense_rank() OVER (ORDER BY all_breaches DESC, all_requests DESC, service, path, objective, target) > $objectives
            AS is_rest,
        -- The first place is that of requests that are no breach.
        dense_rank() OVER (ORDER BY is_breach, of_kind DESC, breach_stage, breach_cause) > $kinds + 1 AS is_rest_kind
    FROM summed
),
folded AS (
    SELECT
        bucket, is_shown, is_rest, is_rest_kind, CASE WHEN NOT is_rest THEN service END AS of_service,
        CASE WHEN NOT is_rest THEN path END AS of_path, CASE WHEN NOT is_rest THEN objective END AS of_objective,
        CASE WHEN NOT is_rest THEN target END AS of_target, CASE WHEN NOT is_rest_kind THEN breach_stage END AS stage,
        CASE WHEN NOT is_rest_kind THEN breach_cause END AS cause, requests, good, breaches, excluded, spread, most, over_ms,
        stored, sampled, unknown, first_start, last_start
    FROM ranked
)
SELECT
    bucket, is_shown, is_rest, is_rest_kind, of_service AS service, of_path AS path, of_objective AS objective, of_target AS target,
    stage, cause, sum(folded.requests) AS requests, sum(folded.good) AS good, sum(folded.breaches) AS breaches,
    sum(folded.excluded) AS excluded, sum(folded.spread) AS spread, max(folded.most) AS most, sum(folded.over_ms) AS over_ms,
    sum(folded.stored) AS stored, bool_or(folded.sampled) AS sampled, bool_or(folded.unknown) AS unknown,
    min(folded.first_start) AS first_unix_nano, max(folded.last_start) AS last_unix_nano
FROM folded
GROUP BY ALL

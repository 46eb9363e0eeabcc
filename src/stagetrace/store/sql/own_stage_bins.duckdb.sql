-- As `stage_bins`, of the stages that a program defined itself, which have no columns: time by weight, and of the same
-- sample what each stage took, as far as its requests have it.
SELECT
    {by} bin, stage, sum(weight * ms) AS ms, min_by(struct_pack(span_id := span_id, ms := ms), lot, $most) AS sample
FROM (
    SELECT
        {by} weight, span_id, reverse(span_id) AS lot, one.key AS stage, one.value AS ms,
        CASE
            WHEN duration_ms > 0 THEN floor(ln(duration_ms) * 100)::BIGINT
            WHEN duration_ms = 0 THEN -100000
            ELSE -100002
        END AS bin
    FROM (SELECT *, unnest(map_entries(stages)) AS one FROM {requests} WHERE other_ms IS NOT NULL)
)
WHERE stage NOT IN (
    {each stages, : '{stage}' end}
)
GROUP BY ALL

-- `{verdicts}` of reductions: requests, with a row for each objective that judged one. `objective`, `target`, `verdict` and
-- `breached` are those of that objective, out of the text of `sla.verdicts` where there are several (`policy.entry_span`).
-- `is_shown`: whether the entry span shows this one, as it does one of each request; by how much the others were over is not
-- known. `one` is NULL for what the entry span shows: without such a text, or if that lists so many that it is not there.
(
    SELECT
        * EXCLUDE (one, parts) REPLACE (
            CASE WHEN one IS NULL THEN objective ELSE parts[1] END AS objective,
            CASE WHEN one IS NULL THEN target ELSE nullif(parts[2], '99% over 28d') END AS target,
            CASE WHEN one IS NULL THEN verdict ELSE split_part(one, ':', 1) END AS verdict,
            CASE
                WHEN one IS NULL THEN breached WHEN starts_with(one, 'good') THEN false WHEN starts_with(one, 'breach') THEN true
            END AS breached,
            CASE WHEN is_shown THEN overrun_ms END AS overrun_ms
        )
    FROM (
        SELECT *, one IS NULL OR coalesce(objective = parts[1], false) AS is_shown
        FROM (
            SELECT
                *,
                CASE
                    WHEN one IS NOT NULL
                    THEN [
                        regexp_extract(one, '^[a-z]+: (.+) \([^()]+\)$', 1, 's'),
                        regexp_extract(one, '^[a-z]+: .+ \(([^()]+)\)$', 1, 's')
                    ]
                END AS parts
            FROM (
                SELECT
                    *,
                    unnest(
                        CASE
                            WHEN verdicts IS NULL THEN [NULL]
                            ELSE list_concat(
                                list_filter(
                                    string_split(verdicts, '; '),
                                    lambda text: regexp_full_match(text, '(good|breach|excluded): .+ \([^()]+\)', 's')
                                ),
                                CASE WHEN coalesce(contains(verdicts, ': ' || objective || ' ('), false) THEN [] ELSE [NULL] END
                            )
                        END
                    ) AS one
                FROM {requests}
            )
        )
    )
)

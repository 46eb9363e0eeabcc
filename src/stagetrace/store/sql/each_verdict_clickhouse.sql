-- As for DuckDB.
(
    SELECT
        * EXCEPT (one, parts) REPLACE (
            if(isNull(one), objective, parts[1]) AS objective,
            if(isNull(one), target, nullIf(parts[2], '99% over 28d')) AS target,
            if(isNull(one), verdict, splitByChar(':', assumeNotNull(one))[1]) AS verdict,
            multiIf(
                isNull(one), breached, startsWith(assumeNotNull(one), 'good'), false, startsWith(assumeNotNull(one), 'breach'),
                true, NULL
            ) AS breached,
            if(is_shown, overrun_ms, NULL) AS overrun_ms
        )
    FROM (
        SELECT *, isNull(one) OR coalesce(objective = parts[1], false) AS is_shown
        FROM (
            SELECT *, extractGroups(coalesce(one, ''), '(?s)^[a-z]+: (.+) \\(([^()]+)\\)$') AS parts
            FROM (
                SELECT
                    *,
                    arrayJoin(
                        if(
                            isNull(verdicts), [NULL],
                            arrayConcat(
                                arrayMap(
                                    text -> toNullable(text),
                                    arrayFilter(
                                        text -> match(text, '(?s)^(good|breach|excluded): .+ \\([^()]+\\)$'),
                                        splitByString('; ', assumeNotNull(verdicts))
                                    )
                                ),
                                if(
                                    position(assumeNotNull(verdicts), concat(': ', coalesce(objective, '\n'), ' (')) > 0,
                                    [], [NULL]
                                )
                            )
                        )
                    ) AS one
                FROM {requests}
            )
        )
    )
)

-- As for DuckDB.
SELECT
    toInt64(count()) AS requests,
    sumWithOverflow(reinterpretAsUInt64(reverse(substring(hash, 1, 8)))) AS first_sum,
    sumWithOverflow(reinterpretAsUInt64(reverse(substring(hash, 9, 8)))) AS second_sum,
    min(start_unix_nano) AS first_unix_nano, max(start_unix_nano) AS last_unix_nano
FROM (
    SELECT
        start_unix_nano,
        SHA256(
            concatWithSeparator(
                char(31), assumeNotNull(trace_id), assumeNotNull(span_id), assumeNotNull(service), toString(assumeNotNull(start_unix_nano)),
                multiIf(breached, 'breach', NOT breached, 'good', coalesce(verdict, '')),
                coalesce(path, ''), coalesce(objective, ''), coalesce(target, '')
            ) || coalesce(char(31) || verdicts, '')
        ) AS hash
    FROM {requests}
)

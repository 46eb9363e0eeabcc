-- As for DuckDB.
WITH listed AS (
    SELECT
        toInt64(one.1) AS incident, one.2 AS listed_service, one.3 AS listed_path, one.4 AS whole, one.5 AS since,
        one.6 AS until
    FROM (
        SELECT arrayJoin(arrayZip(
            range(length({starts:Array(Int64)})), {services:Array(String)}, {paths:Array(String)},
            {objectives:Array(String)}, {starts:Array(Int64)}, {ends:Array(Int64)}
        )) AS one
    )
)
SELECT
    incident, stage, cause, toInt64(count()) AS breaches, coalesce(sum(overrun_ms), 0) AS over_ms,
    argMax(trace_id, (coalesce(overrun_ms, 0), -start_unix_nano, trace_id)) AS trace_id
FROM {verdicts} AS request
JOIN listed ON service = listed_service AND path = listed_path
WHERE
    breached AND start_unix_nano >= since AND start_unix_nano < until
    AND if(target IS NULL, coalesce(objective, ''), concat(coalesce(objective, ''), ' for ', coalesce(target, ''))) = whole
    AND arrayCount(edge -> edge <= start_unix_nano, {excluded:Array(Int64)}) % 2 = 0
GROUP BY incident, stage, cause

-- As for DuckDB.
WITH events AS (
    SELECT
        {by} {attribute:host.name} AS "host.name", {attribute:service.instance.id} AS "service.instance.id",
        coalesce(breached, false) AS is_breach, weight, start_unix_nano >= {since:Int64} AS is_own,
        end_unix_nano < start_unix_nano AS is_negative, pair.1 AS step, pair.2 AS moment
    FROM (
        SELECT
            *, arrayJoin([
                (toInt64(1), greatest(start_unix_nano, {since:Int64})),
                (toInt64(-1), least(greatest(start_unix_nano, end_unix_nano), {until:Int64}))
            ]) AS pair
        FROM {requests}
        WHERE start_unix_nano < {until:Int64} AND (start_unix_nano >= {since:Int64} OR end_unix_nano > {since:Int64})
    )
),
counted AS (
    SELECT
        *, sum(step) OVER flow - step AS before, sum(step * weight) OVER flow - step * weight AS heavy,
        moment - lagInFrame(moment) OVER flow AS gap
    FROM events
    WINDOW flow AS (
        PARTITION BY service, coalesce(nullif("host.name", ''), "service.instance.id") ORDER BY moment ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
    )
),
shared AS (
    SELECT
        *, sum(if(before > 0, toInt64(floor(16 * gap / heavy)), 0)) OVER (
            PARTITION BY service, coalesce(nullif("host.name", ''), "service.instance.id") ORDER BY moment
        ) AS upto
    FROM counted
)
SELECT
    {by} "host.name", "service.instance.id", is_breach, weight, intDiv(countIf(is_own), 2) AS stored,
    intDiv(countIf(is_own AND is_negative), 2) AS negative, -sum(step * upto) AS sixteenths, min(moment) AS first, max(moment) AS last
FROM shared
GROUP BY ALL
ORDER BY sixteenths DESC
LIMIT {most:UInt64}

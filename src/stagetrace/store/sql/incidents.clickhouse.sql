-- As for DuckDB.
WITH buckets AS (
    SELECT
        service, path, objective, target, intDiv(start_unix_nano - {since_ns:Int64}, {width_ns:Int64}) AS bucket,
        sum(weight) AS judged, coalesce(sumIf(weight, breached), 0) AS breaches
    FROM {verdicts}
    WHERE breached IS NOT NULL AND arrayCount(edge -> edge <= start_unix_nano, {excluded:Array(Int64)}) % 2 = 0
    GROUP BY ALL
),
marked AS (
    SELECT
        *, indexOf({objectives:Array(String)}, concatWithSeparator(' for ', coalesce(objective, ''), coalesce(target, ''))) AS named,
        indexOf({objectives:Array(String)}, coalesce(objective, '')) AS unnamed,
        if(target IS NULL, unnamed, named) AS place,
        place > 0 AND breaches >= {least:Float64} AND breaches >= judged * {shares:Array(Float64)}[place] AS bad
    FROM buckets
),
near AS (
    SELECT
        *, max(if(bad, bucket, NULL)) OVER (PARTITION BY service, path, objective, target ORDER BY bucket) AS before,
        min(if(bad, bucket, NULL)) OVER (PARTITION BY service, path, objective, target ORDER BY bucket DESC) AS behind,
        max(if(bad, bucket, NULL)) OVER (
            PARTITION BY service, path, objective, target ORDER BY bucket ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS last_one
    FROM marked
),
numbered AS (
    SELECT
        *, sum(if(bad AND coalesce(bucket - last_one - 1 > {gap:Int64}, true), 1, 0))
            OVER (PARTITION BY service, path, objective, target ORDER BY bucket) AS incident
    FROM near
    WHERE bad OR behind - before - 1 <= {gap:Int64}
),
joined AS (
    SELECT
        service, path, objective, target, {since_ns:Int64} + min(bucket) * {width_ns:Int64} AS since_unix_nano,
        {since_ns:Int64} + (max(bucket) + 1) * {width_ns:Int64} AS until_unix_nano, sum(judged) AS judged,
        sum(breaches) AS breaches, toInt64(countIf(bad)) AS bad_buckets
    FROM numbered
    GROUP BY service, path, objective, target, incident
)
SELECT *, toInt64(count() OVER ()) AS incidents
FROM joined
ORDER BY breaches DESC, since_unix_nano, service, path, objective, target
LIMIT {most:UInt32}

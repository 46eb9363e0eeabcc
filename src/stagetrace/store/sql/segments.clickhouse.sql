-- As for DuckDB. ClickHouse resolves names to aliases of the same query, so that sums have names of their own.
WITH counted AS (
    SELECT
        CAST(coalesce({by} NULL) AS Nullable(String)) AS segment, service, path,
        toInt32(floor(log(greatest(duration_ms, 1e-3)) / log(1.02))) AS bucket, sum(weight) AS requests_,
        coalesce(sumIf(weight, NOT breached), 0) AS good_, coalesce(sumIf(weight, breached), 0) AS breaches_,
        coalesce(sumIf(weight * weight, NOT breached), 0) AS squares_good_, sum(weight * weight) AS squares_,
        count() AS stored_, min(duration_ms) AS low_, max(duration_ms) AS high_,
        coalesce(sumIf(overrun_ms, breached), 0) AS over_,
        {each parts, : coalesce(sum(weight * {column}), 0) AS {part}_total end},
        {sampled} AS sampled_, {unknown} AS unknown_
    FROM {requests}
    GROUP BY ALL
),
sized AS (SELECT segment, sum(requests_) AS size FROM counted GROUP BY segment),
ranked AS (
    SELECT
        segment AS name, row_number() OVER (ORDER BY size DESC, segment IS NULL, segment) AS rank, count() OVER () AS groups_
    FROM sized
),
kept AS (
    SELECT
        counted.*, groups_, if(rank <= {most:UInt32}, rank, 0) AS place,
        if(rank <= {most:UInt32}, counted.segment, NULL) AS named
    FROM counted JOIN ranked ON counted.segment IS NOT DISTINCT FROM ranked.name
)
SELECT
    named AS segment, toInt64(place) AS place, toInt64(max(groups_)) AS groups, service, path, bucket,
    sum(requests_) AS requests, sum(good_) AS good, sum(breaches_) AS breaches, sum(squares_good_) AS squares_good,
    sum(squares_) AS squares, toInt64(sum(stored_)) AS stored, min(low_) AS low_ms, max(high_) AS high_ms,
    sum(over_) AS over_ms,
    {each parts, : sum({part}_total) AS {part}_sum end},
    max(sampled_) AS sampled, max(unknown_) AS unknown
FROM kept
GROUP BY named, place, service, path, bucket

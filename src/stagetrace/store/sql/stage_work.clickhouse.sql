-- As for DuckDB.
WITH grouped AS (
    SELECT
        {by} resource, count() AS stored, countIf(end_unix_nano < start_unix_nano) AS reversed,
        {sampled} AS sampled, {unknown} AS unknown,
        min(start_unix_nano) AS first_ns, max(end_unix_nano) AS last_ns,
        coalesce(sumIf(weight, duration_ms >= 0), 0) AS requests,
        coalesce(sumIf(weight * duration_ms, duration_ms >= 0), 0) AS whole_ms,
        coalesce(sumIf(weight * duration_ms * duration_ms, duration_ms >= 0), 0) AS squares_ms,
        if(requests = 0, NULL, quantilesExactInclusiveIf(0.05, 0.5, 0.99)(assumeNotNull(duration_ms), duration_ms >= 0))
            AS quantiles_ms,
        {each parts, : sum(weight * {column}) AS {column} end},
        sum(process_cpu_ms) AS cpu_ms, sum(weight * batch_size) AS batched, coalesce(sumIf(weight, batch_size IS NOT NULL), 0) AS with_batch
    FROM {requests}
    GROUP BY ALL
)
SELECT
    * EXCEPT (resource),
    coalesce(
        nullIf({resource}['service.instance.id'], ''),
        nullIf(
            arrayStringConcat(arrayFilter(x -> x != '', [{resource}['host.name'], {resource}['process.pid']]), ':'), ''
        )
    ) AS instance
FROM grouped

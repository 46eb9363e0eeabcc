-- Of each group and instance, which is the process where its resource says which: from when to when it has requests, their
-- durations and the time in each stage, ms, by weight; `stored` to `unknown` as `counts` has them. Requests that end before
-- they begin count in `reversed` alone.
-- Resources are few, and long: they are read once they are grouped by.
WITH grouped AS (
    SELECT
        {by} of_resource, count(*) AS stored, count(*) FILTER (WHERE end_unix_nano < start_unix_nano) AS reversed,
        {sampled} AS sampled, {unknown} AS unknown,
        min(start_unix_nano) AS first_ns, max(end_unix_nano) AS last_ns,
        coalesce(sum(weight) FILTER (WHERE duration_ms >= 0), 0) AS requests,
        coalesce(sum(weight * duration_ms) FILTER (WHERE duration_ms >= 0), 0) AS whole_ms,
        coalesce(sum(weight * duration_ms * duration_ms) FILTER (WHERE duration_ms >= 0), 0) AS squares_ms,
        quantile_cont(duration_ms, [0.05, 0.5, 0.99]) FILTER (WHERE duration_ms >= 0) AS quantiles_ms,
        {each parts, : sum(weight * {column}) AS {column} end},
        sum(process_cpu_ms) AS cpu_ms, sum(weight * batch_size) AS batched, coalesce(sum(weight) FILTER (WHERE batch_size IS NOT NULL), 0) AS with_batch
    FROM {requests}
    GROUP BY ALL
)
SELECT
    * EXCLUDE (of_resource),
    coalesce(
        {resource}['service.instance.id'],
        nullif(concat_ws(':', {resource}['host.name'], {resource}['process.pid']), '')
    ) AS instance
FROM grouped

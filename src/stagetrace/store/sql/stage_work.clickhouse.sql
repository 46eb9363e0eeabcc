-- As for DuckDB.
WITH grouped AS (
    SELECT
        {by} resource, count() AS stored, countIf(end_unix_nano < start_unix_nano) AS reversed,
        max(isNotNull(sampling_probability) OR coalesce(upgraded, false)) AS sampled,
        max(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false)) AS unknown,
        min(start_unix_nano) AS first_ns, max(end_unix_nano) AS last_ns,
        coalesce(sumIf(weight, duration_ms >= 0), 0) AS requests,
        coalesce(sumIf(weight * duration_ms, duration_ms >= 0), 0) AS whole_ms,
        coalesce(sumIf(weight * duration_ms * duration_ms, duration_ms >= 0), 0) AS squares_ms,
        if(requests = 0, NULL, quantilesExactInclusiveIf(0.05, 0.5, 0.99)(assumeNotNull(duration_ms), duration_ms >= 0))
            AS quantiles_ms,
        sum(weight * network_receive_ms) AS network_receive_ms, sum(weight * queue_ms) AS queue_ms,
        sum(weight * preprocess_ms) AS preprocess_ms, sum(weight * handler_ms) AS handler_ms,
        sum(weight * inference_ms) AS inference_ms, sum(weight * postprocess_ms) AS postprocess_ms,
        sum(weight * network_send_ms) AS network_send_ms, sum(weight * other_ms) AS other_ms,
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

-- As for DuckDB.
SELECT
    {by} sum(weight) AS requests, count() AS stored,
    max(isNotNull(sampling_probability) OR coalesce(upgraded, false)) AS sampled,
    sampled AND (
        coalesce(max(sampling_probability), 0) = 0
        OR max(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false))
    ) AS unknown,
    min(weight) < max(weight) AS uneven,
    if(
        count(taken.duration_ms) = 0, [],
        arrayConcat(
            [sumIf(weight, isNotNull(taken.duration_ms))], quantilesExactInclusive(0.5, 0.95, 0.99)(taken.duration_ms),
            [max(taken.duration_ms), sum(weight * taken.duration_ms)]
        )
    ) AS duration_ms,
    if(
        count(taken.network_receive_ms) = 0, [],
        arrayConcat(
            [sumIf(weight, isNotNull(taken.network_receive_ms))], quantilesExactInclusive(0.5, 0.95, 0.99)(taken.network_receive_ms),
            [max(taken.network_receive_ms), sum(weight * taken.network_receive_ms)]
        )
    ) AS network_receive_ms,
    if(
        count(taken.queue_ms) = 0, [],
        arrayConcat(
            [sumIf(weight, isNotNull(taken.queue_ms))], quantilesExactInclusive(0.5, 0.95, 0.99)(taken.queue_ms),
            [max(taken.queue_ms), sum(weight * taken.queue_ms)]
        )
    ) AS queue_ms,
    if(
        count(taken.preprocess_ms) = 0, [],
        arrayConcat(
            [sumIf(weight, isNotNull(taken.preprocess_ms))], quantilesExactInclusive(0.5, 0.95, 0.99)(taken.preprocess_ms),
            [max(taken.preprocess_ms), sum(weight * taken.preprocess_ms)]
        )
    ) AS preprocess_ms,
    if(
        count(taken.handler_ms) = 0, [],
        arrayConcat(
            [sumIf(weight, isNotNull(taken.handler_ms))], quantilesExactInclusive(0.5, 0.95, 0.99)(taken.handler_ms),
            [max(taken.handler_ms), sum(weight * taken.handler_ms)]
        )
    ) AS handler_ms,
    if(
        count(taken.inference_ms) = 0, [],
        arrayConcat(
            [sumIf(weight, isNotNull(taken.inference_ms))], quantilesExactInclusive(0.5, 0.95, 0.99)(taken.inference_ms),
            [max(taken.inference_ms), sum(weight * taken.inference_ms)]
        )
    ) AS inference_ms,
    if(
        count(taken.postprocess_ms) = 0, [],
        arrayConcat(
            [sumIf(weight, isNotNull(taken.postprocess_ms))], quantilesExactInclusive(0.5, 0.95, 0.99)(taken.postprocess_ms),
            [max(taken.postprocess_ms), sum(weight * taken.postprocess_ms)]
        )
    ) AS postprocess_ms,
    if(
        count(taken.network_send_ms) = 0, [],
        arrayConcat(
            [sumIf(weight, isNotNull(taken.network_send_ms))], quantilesExactInclusive(0.5, 0.95, 0.99)(taken.network_send_ms),
            [max(taken.network_send_ms), sum(weight * taken.network_send_ms)]
        )
    ) AS network_send_ms
FROM {requests} AS taken
GROUP BY ALL

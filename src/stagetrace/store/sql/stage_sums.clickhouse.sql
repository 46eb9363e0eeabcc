-- As for DuckDB.
WITH timed AS (
    SELECT
        {by} intDiv(start_unix_nano - {origin:Int64}, {width:Int64}) AS bucket, weight, duration_ms, breached,
        upgraded, sampling_probability,
        multiIf(duration_ms > 0, toInt64(floor(ln(duration_ms) * 100)), duration_ms = 0, -100000, -100002) AS bin,
        network_receive_ms, queue_ms, preprocess_ms, handler_ms, inference_ms, postprocess_ms, network_send_ms, other_ms,
        coalesce(network_receive_ms, 0) + coalesce(queue_ms, 0) + coalesce(preprocess_ms, 0) + coalesce(handler_ms, 0)
        + coalesce(inference_ms, 0) + coalesce(postprocess_ms, 0) + coalesce(network_send_ms, 0)
        + coalesce(other_ms, 0) AS staged_ms
    FROM {requests}
),
summed AS (
    SELECT
        {by} bucket, bin, min(duration_ms) AS low_ms, max(duration_ms) AS high_ms,
        count() AS stored, sum(weight) AS requests, sum(weight * weight) AS squares,
        countIf(staged_ms > duration_ms + 0.001) AS overlapping,
        max(isNotNull(sampling_probability) OR coalesce(upgraded, false)) AS sampled,
        max(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false)) AS unknown,
        coalesce(sum(weight * timed.network_receive_ms), 0) AS network_receive_ms,
        coalesce(sum(weight * timed.queue_ms), 0) AS queue_ms,
        coalesce(sum(weight * timed.preprocess_ms), 0) AS preprocess_ms,
        coalesce(sum(weight * timed.handler_ms), 0) AS handler_ms,
        coalesce(sum(weight * timed.inference_ms), 0) AS inference_ms,
        coalesce(sum(weight * timed.postprocess_ms), 0) AS postprocess_ms,
        coalesce(sum(weight * timed.network_send_ms), 0) AS network_send_ms,
        coalesce(sum(weight * timed.other_ms), 0) AS other_ms,
        sum(weight * greatest(0., duration_ms - staged_ms)) AS no_stage_ms
    FROM timed
    GROUP BY ALL
),
sized AS (SELECT *, sum(summed.stored) OVER (PARTITION BY {by} 1) AS size FROM summed),
ranked AS (SELECT *, toInt64(dense_rank() OVER (ORDER BY size DESC, {by} 1)) AS place FROM sized),
counted AS (SELECT *, max(place) OVER () AS groups FROM ranked)
SELECT * EXCEPT (size) FROM counted WHERE place <= {most:Int64}

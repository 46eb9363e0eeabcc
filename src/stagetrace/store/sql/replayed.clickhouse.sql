-- As for DuckDB.
WITH seen AS (
    SELECT service, {attribute:service.instance.id} AS instance, min(start_unix_nano) AS first_seen
    FROM {requests}
    WHERE notEmpty({warmups:Array(Int64)})
    GROUP BY ALL
),
read AS (
    SELECT
        *, end_unix_nano - start_unix_nano AS took_ns, {attribute:service.instance.id} AS instance,
        toBool(status = 'ERROR' OR coalesce(http_status >= 500, false)) AS failed,
        toBool(isNotNull({attribute:stagetrace.network.disconnect})) AS disconnected,
        toBool(coalesce({attribute:url.scheme}, {attribute:http.scheme}, '') IN ('ws', 'wss')) AS is_websocket,
        if(isNull(method), {attribute:rpc.service}, NULL) AS rpc_service,
        toFloat64OrNull({attribute:stagetrace.network.first_byte_ms}) AS chunk_ms,
        toFloat64OrNull({attribute:stagetrace.network.chunk_gap.max_ms}) AS gap_ms,
        toFloat64OrNull({attribute:stagetrace.tokens.first_ms}) AS token_ms,
        toFloat64OrNull({attribute:stagetrace.tokens.gap.mean_ms}) AS mean_ms,
        toInt64OrNull({attribute:gen_ai.usage.output_tokens}) AS outputs,
        greatest(toInt64OrNull({attribute:stagetrace.tokens.calls}), 1) AS calls,
        if(position({attribute:sla.fallback}, 'per_token') > 0, 'per_token', NULL) AS fallback,
        if(breached, {attribute:sla.breach.promise}, NULL) AS promise,
        toFloat64OrNull({attribute:sla.deadline.remaining_ms}) AS remaining_ms,
        if(isNotNull(deadline_source), threshold_ms, NULL) AS deadline_ms
    FROM {requests}
),
counted AS (
    SELECT
        {by} read.service AS of_service, method, route, is_websocket, rpc_service, failed, disconnected, objective AS was_objective,
        target AS was_target, verdict AS was_verdict, breached AS was_breached, verdicts, segment AS was_segment, excluded_reason,
        deadline_source, promise, fallback, toBool(isNull(mean_ms) AND outputs > coalesce(calls, 1)) AS has_more,
        toBool(isNull(outputs)) AS no_outputs,
        toInt64(arrayCount(bound -> bound < took_ns, {within:Array(Int64)})) AS over_within,
        if(isNull(chunk_ms), NULL, toInt64(arrayCount(
            bound -> bound < round(assumeNotNull(chunk_ms) * 1e6), {first_chunk:Array(Int64)}))) AS over_first_chunk,
        if(isNull(gap_ms), NULL, toInt64(arrayCount(
            bound -> bound < round(assumeNotNull(gap_ms) * 1e6), {per_chunk:Array(Int64)}))) AS over_per_chunk,
        if(isNull(token_ms), NULL, toInt64(arrayCount(
            bound -> bound < round(assumeNotNull(token_ms) * 1e6), {first_token:Array(Int64)}))) AS over_first_token,
        if(isNull(mean_ms), NULL, toInt64(arrayCount(
            bound -> bound < assumeNotNull(mean_ms) * 1e6 - 1e-4, {per_token:Array(Int64)}))) AS over_per_token,
        toBool(took_ns > round(remaining_ms * 1e6)) AS over_remaining,
        toBool(took_ns > round(deadline_ms * 1e6)) AS over_deadline,
        toBool(round(coalesce(token_ms, chunk_ms) * 1e6) > round(deadline_ms * 1e6)) AS token_over_deadline, toBool(isNull(token_ms)) AS no_token,
        if(
            notEmpty({warmups:Array(Int64)}) AND isNotNull(read.instance),
            toInt64(arrayCount(one -> one <= start_unix_nano - first_seen, {warmups:Array(Int64)})), 0
        ) AS warm,
        argMax(
            tuple(
                trace_id, start_unix_nano, took_ns, chunk_ms, gap_ms, token_ms, mean_ms, remaining_ms, deadline_ms, outputs, calls
            ),
            tuple(took_ns, trace_id, span_id)
        ) AS example,
        sum(weight) AS requests, sum(weight * (weight - 1)) AS spread, toInt64(count()) AS stored,
        max(threshold_ms) AS greatest_threshold_ms,
        coalesce(1 / minIf(sampling_probability, sampling_probability > 0), 1) AS most,
        toBool({sampled}) AS sampled,
        toBool({unknown}) AS unknown,
        min(start_unix_nano) AS first_unix_nano, max(start_unix_nano) AS last_unix_nano
    FROM read LEFT JOIN seen ON seen.service = read.service AND seen.instance = read.instance
    GROUP BY ALL
)
SELECT
    * EXCEPT (example), example.1 AS trace_id, example.2 AS start_unix_nano, example.3 AS took_ns, example.4 AS chunk_ms,
    example.5 AS gap_ms, example.6 AS token_ms, example.7 AS mean_ms, example.8 AS remaining_ms, example.9 AS deadline_ms,
    example.10 AS outputs, example.11 AS calls, toInt64(count() OVER ()) AS groups, sum(requests) OVER () AS all_requests
FROM counted
ORDER BY requests DESC, trace_id
LIMIT {most:UInt64}

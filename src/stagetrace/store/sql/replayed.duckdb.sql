-- Requests by all that the verdict of a policy depends on, so that each group has one verdict, and by the recorded verdict. Times
-- count by how many of some bounds, in ns, they exceed: `within`, `first_chunk`, `per_chunk`, `first_token`, `per_token`; and by
-- whether they exceed the recorded threshold, and what was left of a deadline. The slowest request of a group is its example, the
-- times of which come with it. `warmups`, in ns: an instance was first seen so long before. At most `most` groups come, those
-- with the most requests, of `groups` with `all_requests`.
WITH seen AS (
    SELECT service, {attribute:service.instance.id} AS instance, min(start_unix_nano) AS first_seen
    FROM {requests}
    WHERE len($warmups::BIGINT[]) > 0
    GROUP BY ALL
),
read AS (
    SELECT
        *, end_unix_nano - start_unix_nano AS took_ns, {attribute:service.instance.id} AS instance,
        status = 'ERROR' OR coalesce(http_status >= 500, false) AS failed,
        {attribute:stagetrace.network.disconnect} IS NOT NULL AS disconnected,
        coalesce(coalesce({attribute:url.scheme}, {attribute:http.scheme}) IN ('ws', 'wss'), false) AS is_websocket,
        CASE WHEN method IS NULL THEN {attribute:rpc.service} END AS rpc_service,
        try_cast({attribute:stagetrace.network.first_byte_ms} AS DOUBLE) AS chunk_ms,
        try_cast({attribute:stagetrace.network.chunk_gap.max_ms} AS DOUBLE) AS gap_ms,
        try_cast({attribute:stagetrace.tokens.first_ms} AS DOUBLE) AS token_ms,
        try_cast({attribute:stagetrace.tokens.gap.mean_ms} AS DOUBLE) AS mean_ms,
        try_cast({attribute:gen_ai.usage.output_tokens} AS BIGINT) AS outputs,
        greatest(try_cast({attribute:stagetrace.tokens.calls} AS BIGINT), 1) AS calls,
        CASE WHEN contains({attribute:sla.fallback}, 'per_token') THEN 'per_token' END AS fallback,
        CASE WHEN breached THEN {attribute:sla.breach.promise} END AS promise,
        try_cast({attribute:sla.deadline.remaining_ms} AS DOUBLE) AS remaining_ms,
        CASE WHEN deadline_source IS NOT NULL THEN threshold_ms END AS deadline_ms
    FROM {requests}
),
counted AS (
    SELECT
        {by} read.service AS of_service, method, route, is_websocket, rpc_service, failed, disconnected, objective AS was_objective,
        target AS was_target, verdict AS was_verdict, breached AS was_breached, verdicts, segment AS was_segment, excluded_reason,
        deadline_source, promise, fallback, mean_ms IS NULL AND outputs > coalesce(calls, 1) AS has_more, outputs IS NULL AS no_outputs,
        len(list_filter($within::BIGINT[], lambda bound: bound < took_ns)) AS over_within,
        CASE
            WHEN chunk_ms IS NOT NULL THEN len(list_filter($first_chunk::BIGINT[], lambda bound: bound < round(chunk_ms * 1e6)))
        END AS over_first_chunk,
        CASE
            WHEN gap_ms IS NOT NULL THEN len(list_filter($per_chunk::BIGINT[], lambda bound: bound < round(gap_ms * 1e6)))
        END AS over_per_chunk,
        CASE
            WHEN token_ms IS NOT NULL THEN len(list_filter($first_token::BIGINT[], lambda bound: bound < round(token_ms * 1e6)))
        END AS over_first_token,
        CASE
            WHEN mean_ms IS NOT NULL THEN len(list_filter($per_token::BIGINT[], lambda bound: bound < mean_ms * 1e6 - 1e-4))
        END AS over_per_token,
        took_ns > round(remaining_ms * 1e6) AS over_remaining, took_ns > round(deadline_ms * 1e6) AS over_deadline,
        round(coalesce(token_ms, chunk_ms) * 1e6) > round(deadline_ms * 1e6) AS token_over_deadline, token_ms IS NULL AS no_token,
        CASE
            WHEN len($warmups) > 0 AND read.instance IS NOT NULL
            THEN len(list_filter($warmups::BIGINT[], lambda one: one <= start_unix_nano - first_seen)) ELSE 0
        END AS warm,
        arg_max(
            struct_pack(
                trace_id, start_unix_nano, took_ns, chunk_ms, gap_ms, token_ms, mean_ms, remaining_ms, deadline_ms, outputs, calls
            ),
            (took_ns, trace_id, span_id)
        ) AS example,
        sum(weight) AS requests, sum(weight * (weight - 1)) AS spread, count(*) AS stored, max(threshold_ms) AS greatest_threshold_ms,
        coalesce(1 / min(sampling_probability) FILTER (WHERE sampling_probability > 0), 1) AS most,
        {sampled} AS sampled, {unknown} AS unknown,
        min(start_unix_nano) AS first_unix_nano, max(start_unix_nano) AS last_unix_nano
    FROM read LEFT JOIN seen ON seen.service = read.service AND seen.instance = read.instance
    GROUP BY ALL
)
SELECT
    * EXCLUDE (example), example.trace_id AS trace_id, example.start_unix_nano AS start_unix_nano, example.took_ns AS took_ns,
    example.chunk_ms AS chunk_ms, example.gap_ms AS gap_ms, example.token_ms AS token_ms, example.mean_ms AS mean_ms,
    example.remaining_ms AS remaining_ms, example.deadline_ms AS deadline_ms, example.outputs AS outputs, example.calls AS calls,
    count(*) OVER () AS groups, sum(requests) OVER () AS all_requests
FROM counted
ORDER BY requests DESC, trace_id
LIMIT $most

-- The requests that carry no verdict, by all that one depends on beside durations: at most `most` kinds, of `unjudged` requests.
SELECT
    {by} {kind} AS kind, service AS of_service, method, route, CASE WHEN method IS NULL THEN {attribute:rpc.service} END AS rpc_service,
    {failed} AS failed, {attribute:stagetrace.network.disconnect} IS NOT NULL AS disconnected, {is_websocket} AS is_websocket,
    count(*) AS stored, (sum(count(*)) OVER ())::BIGINT AS unjudged
FROM {requests}
WHERE breached IS NULL AND verdict IS NULL
GROUP BY ALL
ORDER BY stored DESC, kind
LIMIT $most

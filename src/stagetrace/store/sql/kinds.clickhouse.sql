-- As for DuckDB.
SELECT *, sum(stored) OVER () AS unjudged
FROM (
    SELECT
        {by} {kind} AS kind, service AS of_service, method, route,
        if(isNull(method), {attribute:rpc.service}, NULL) AS rpc_service,
        CAST({failed} AS Bool) AS failed, CAST(isNotNull({attribute:stagetrace.network.disconnect}) AS Bool) AS disconnected,
        CAST({is_websocket} AS Bool) AS is_websocket, count() AS stored
    FROM {requests}
    WHERE breached IS NULL AND verdict IS NULL
    GROUP BY ALL
)
ORDER BY stored DESC, kind
LIMIT {most:UInt64}

-- As for DuckDB; by another hash, so that other traces count.
WITH
    sampled AS (SELECT * FROM {spans} WHERE cityHash64(trace_id) % {one_in:UInt32} = 0),
    entries AS (
        SELECT trace_id, assumeNotNull(parent_span_id) AS called_by, service, duration_ms FROM sampled
        WHERE is_entry AND parent_span_id IS NOT NULL
    ),
    late AS (SELECT DISTINCT trace_id, service, true AS is_late FROM sampled WHERE is_entry AND breached),
    found AS (
        SELECT caller.trace_id AS trace_id, caller.service AS caller, toNullable(callee.service) AS callee, true AS is_service,
            if(caller.kind = 'CLIENT', caller.duration_ms, callee.duration_ms) AS took_ms
        FROM entries AS callee
        GLOBAL JOIN sampled AS caller ON caller.trace_id = callee.trace_id AND caller.span_id = callee.called_by
        WHERE caller.service <> callee.service
        UNION ALL
        SELECT trace_id, service, coalesce(
            nullIf(attributes['peer.service'], ''), nullIf(attributes['server.address'], ''),
            nullIf(attributes['net.peer.name'], ''), nullIf(attributes['db.system.name'], ''),
            nullIf(attributes['db.system'], '')
        ), false, duration_ms
        FROM sampled
        WHERE kind = 'CLIENT' AND (trace_id, span_id) GLOBAL NOT IN (SELECT trace_id, called_by FROM entries)
    )
SELECT assumeNotNull(caller) AS caller, assumeNotNull(callee) AS callee, is_service, count() * {one_in:UInt32} AS calls,
    sum(took_ms) * {one_in:UInt32} AS took_ms, countIf(is_late) * {one_in:UInt32} AS of_breaches
FROM found GLOBAL LEFT JOIN late ON late.trace_id = found.trace_id AND late.service = found.caller
WHERE found.callee IS NOT NULL
GROUP BY caller, callee, is_service
ORDER BY took_ms DESC, caller, callee
LIMIT {most:UInt32}

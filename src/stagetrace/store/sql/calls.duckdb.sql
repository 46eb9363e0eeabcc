-- Who calls whom, the calls that took most time in all, out of one trace in so many (`one_in`): how many, how long they took, and
-- how many are of requests of the caller that are breaches. The callee is a service that is stored, or what the call names.
WITH
    sampled AS (SELECT * FROM {spans} WHERE hash(trace_id) % $one_in = 0),
    entries AS (SELECT trace_id, parent_span_id, service, duration_ms FROM sampled WHERE is_entry AND parent_span_id IS NOT NULL),
    late AS (SELECT DISTINCT trace_id, service FROM sampled WHERE is_entry AND breached),
    found AS (
        SELECT caller.trace_id, caller.service AS caller, callee.service AS callee, true AS is_service,
            CASE WHEN caller.kind = 'CLIENT' THEN caller.duration_ms ELSE callee.duration_ms END AS took_ms
        FROM entries AS callee
        JOIN sampled AS caller ON caller.trace_id = callee.trace_id AND caller.span_id = callee.parent_span_id
        WHERE caller.service <> callee.service
        UNION ALL
        SELECT call.trace_id, call.service, coalesce(
            attributes['peer.service'], attributes['server.address'], attributes['net.peer.name'],
            attributes['db.system.name'], attributes['db.system']
        ), false, call.duration_ms
        FROM sampled AS call
        WHERE call.kind = 'CLIENT' AND NOT EXISTS (
            FROM entries AS callee WHERE callee.trace_id = call.trace_id AND callee.parent_span_id = call.span_id
        )
    )
SELECT caller, callee, is_service, count(*) * $one_in AS calls, sum(took_ms) * $one_in AS took_ms,
    count(late.service) * $one_in AS of_breaches
FROM found LEFT JOIN late ON late.trace_id = found.trace_id AND late.service = found.caller
WHERE found.callee IS NOT NULL
GROUP BY caller, callee, is_service
ORDER BY took_ms DESC, caller, callee
LIMIT $most

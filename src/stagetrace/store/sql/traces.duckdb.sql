-- Ids of traces with a request that is a breach (`verdict` 1), is judged and none (0), or any (2): each request with
-- probability `below` / 2^64, by the trace's id; at most `most`.
SELECT DISTINCT trace_id
FROM {requests}
WHERE hash(trace_id) <= $below::UBIGINT AND ($verdict = 2 OR breached = ($verdict = 1))
ORDER BY trace_id
LIMIT $most

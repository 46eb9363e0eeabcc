-- Some of the traces of a window without a request, by chance: spans of tools that record no kind.
SELECT DISTINCT trace_id
FROM {spans}
ORDER BY hash(trace_id), trace_id
LIMIT $most

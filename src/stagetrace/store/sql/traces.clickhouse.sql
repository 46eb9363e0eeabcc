-- As for DuckDB; by another hash, so that others come.
SELECT DISTINCT trace_id
FROM {requests}
WHERE cityHash64(trace_id) <= {below:UInt64}
    AND ({verdict:UInt8} = 2 OR breached = ({verdict:UInt8} = 1))
ORDER BY trace_id
LIMIT {most:UInt32}

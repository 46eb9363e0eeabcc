-- As for DuckDB.
SELECT trace_id, span_id, service, path, start_unix_nano, duration_ms, breached, stage, cause
FROM {requests}
WHERE ({kind:UInt8} = 0 AND breached) OR (
    {kind:UInt8} = 1 AND start_unix_nano >= {box_since:Int64} AND start_unix_nano < {box_until:Int64}
    AND duration_ms >= {box_least:Float64} AND duration_ms < {box_most:Float64}
)
ORDER BY duration_ms DESC, span_id
LIMIT {most:UInt32}

-- As for DuckDB.
SELECT trace_id, span_id, service, start_unix_nano
FROM (SELECT *, toFloat64({value}) AS ordered FROM {requests})
WHERE (NOT {breached:Bool} OR breached)
    AND (
        NOT {is_behind:Bool}
        OR ({value:Nullable(Float64)} IS NOT NULL AND (ordered < {value:Nullable(Float64)} OR ordered IS NULL))
        OR (
            (ordered = {value:Nullable(Float64)} OR (ordered IS NULL AND {value:Nullable(Float64)} IS NULL))
            AND (
                start_unix_nano < {start_unix_nano:Int64}
                OR (
                    start_unix_nano = {start_unix_nano:Int64}
                    AND (trace_id, span_id) > ({trace_id:String}, {span_id:String})
                )
            )
        )
    )
ORDER BY ordered DESC NULLS LAST, start_unix_nano DESC, trace_id, span_id
LIMIT {most:UInt64}

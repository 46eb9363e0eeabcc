-- As for DuckDB.
SELECT
    {by} coalesce(
        nullIf({resource}['service.instance.id'], ''),
        nullIf(
            arrayStringConcat(arrayFilter(x -> x != '', [{resource}['host.name'], {resource}['process.pid']]), ':'), ''
        )
    ) AS instance,
    toFloat64OrNull({resource}['stagetrace.process.cpus']) AS cpus, start_unix_nano, end_unix_nano, weight, framework, batch_size,
    process_cpu_ms, threshold_ms, {each parts, : {column} end}
FROM {requests}
WHERE service = {service:String} AND end_unix_nano >= start_unix_nano
ORDER BY start_unix_nano DESC, span_id
LIMIT {most:UInt64}

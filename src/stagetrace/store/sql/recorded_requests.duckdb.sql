-- The newest `most` requests of one service, the newest first, with what a model of the service is made of. Those that end
-- before they begin are not there.
SELECT
    {by} coalesce(
        {resource}['service.instance.id'],
        nullif(concat_ws(':', {resource}['host.name'], {resource}['process.pid']), '')
    ) AS instance,
    try_cast({resource}['stagetrace.process.cpus'] AS DOUBLE) AS cpus, start_unix_nano, end_unix_nano, weight, framework, batch_size,
    process_cpu_ms, threshold_ms, {each parts, : {column} end}
FROM {requests}
WHERE service = $service AND end_unix_nano >= start_unix_nano
ORDER BY start_unix_nano DESC, span_id
LIMIT $most

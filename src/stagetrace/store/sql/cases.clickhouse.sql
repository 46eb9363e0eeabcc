-- As for DuckDB; by another hash, so that others come.
SELECT
    trace_id, span_id, service, path, start_unix_nano, duration_ms, weight, overrun_ms, stage, cause, model, model_version,
    framework, mapKeys(stages) AS stage_names, mapValues(stages) AS stage_ms, mapKeys(attributes) AS keys,
    mapValues(attributes) AS texts, mapKeys({resource}) AS resource_keys, mapValues({resource}) AS resource_texts
FROM {requests}
WHERE ({verdict:UInt8} = 2 OR breached = ({verdict:UInt8} = 1)) AND cityHash64(span_id) <= {below:UInt64}
LIMIT {most:UInt32}

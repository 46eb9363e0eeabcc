CREATE VIEW spans AS
SELECT
    trace_id, span_id, parent_span_id, service, name, kind, status, start_unix_nano, end_unix_nano, duration_ms, is_entry,
    stage, route, method, http_status, model, model_version, framework, batch_size, breached, verdict, objective,
    target, breach_stage, severity, cause, threshold_ms, overrun_ms, upgraded, sampling_probability, attributes, resource
FROM whole;

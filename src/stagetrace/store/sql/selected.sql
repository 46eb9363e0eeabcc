-- What `requests` and `spans` are made of, out of `loaded`, by the variables that hold a selection.
CREATE VIEW matching AS
SELECT
    trace_id, span_id, service, name, route, method, http_status, model, model_version, framework, batch_size,
    status, start_unix_nano, end_unix_nano, duration_ms, breached, verdict, objective, target, threshold_ms, overrun_ms,
    severity,
    breach_stage AS stage, cause, evidence, upgraded,
    -- What is none is not known (0), and 1 says nothing. As `relations.probability_of` and `relations.weight_of`.
    CASE
        WHEN sampling_probability = 1 THEN NULL
        WHEN sampling_probability BETWEEN 1.3877787807814457e-17 AND 1 THEN sampling_probability
        WHEN sampling_probability IS NOT NULL THEN 0.0::DOUBLE
    END AS sampling_probability,
    -- A breach counts once: none is dropped.
    CASE
        WHEN loaded.sampling_probability BETWEEN 1.3877787807814457e-17 AND 1 AND NOT coalesce(breached, false)
        THEN 1 / loaded.sampling_probability
        ELSE 1.0::DOUBLE
    END AS weight,
    network_receive_ms, queue_ms, preprocess_ms, handler_ms, inference_ms, postprocess_ms, network_send_ms, other_ms,
    make_timestamp(start_unix_nano // 1000) AS start_time, url_path, stages, attributes,
    rest, of_resource -- what other attributes are read of
FROM loaded
WHERE is_entry
    AND start_unix_nano >= getvariable('since_ns')
    AND start_unix_nano < getvariable('until_ns')
    AND (getvariable('service') IS NULL OR service = getvariable('service'))
    AND (
        getvariable('route') IS NULL OR route = getvariable('route')
        OR CASE
            WHEN coalesce(contains(name, coalesce(route, url_path)), true) THEN name
            ELSE name || ' ' || coalesce(route, url_path)
        END = getvariable('route')
    )
    AND (getvariable('model') IS NULL OR model = getvariable('model'))
    AND (getvariable('breached') IS NULL OR coalesce(breached, false) = getvariable('breached'))
    AND (len(getvariable('causes')) = 0 OR list_contains(getvariable('causes'), cause))
    AND has_segments;

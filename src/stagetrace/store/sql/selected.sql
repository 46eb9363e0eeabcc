-- What `requests` and `spans` are made of, out of `loaded`, by the variables that hold a selection.
CREATE VIEW matching AS
SELECT
    {columns}, -- those of `requests`, by the schema (`columns.py`)
    missed, rest, of_resource -- what else of a breach is read, and what other attributes are read of
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
    AND (
        getvariable('judged_by') IS NULL OR coalesce(objective = getvariable('judged_by'), false)
        OR coalesce(regexp_matches(verdicts, getvariable('its_verdict')), false)
    )
    AND (len(getvariable('causes')) = 0 OR list_contains(getvariable('causes'), cause))
    AND (getvariable('code') IS NULL OR regexp_full_match(code, getvariable('code')))
    AND has_segments;

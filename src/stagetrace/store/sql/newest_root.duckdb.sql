-- The newest span without a parent here, of a service or of all: the trace that is shown where no span is a request.
SELECT trace_id, service, name
FROM {spans} AS child
WHERE ($service IS NULL OR service = $service) AND (
    parent_span_id IS NULL
    OR NOT EXISTS (FROM {spans} AS above WHERE above.trace_id = child.trace_id AND above.span_id = child.parent_span_id)
)
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT 1

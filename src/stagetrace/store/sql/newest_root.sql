-- The newest span without a parent here, of a service ($1) or of all: the trace that is shown where no span is a request.
SELECT trace_id, service, name
FROM spans AS child
WHERE ($1 IS NULL OR service = $1) AND (
    parent_span_id IS NULL
    OR NOT EXISTS (FROM spans AS above WHERE above.trace_id = child.trace_id AND above.span_id = child.parent_span_id)
)
ORDER BY start_unix_nano DESC, trace_id, span_id
LIMIT 1

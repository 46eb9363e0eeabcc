-- Leaves of what a `Loader` received each span once. Of several copies the one with a verdict stays, else the one with more
-- attributes, else the first. Client and server of one call share an id in traces that came from Zipkin, so that service
-- and kind tell spans apart too.
DELETE FROM received
WHERE rowid IN (
    SELECT rowid FROM received
    QUALIFY row_number() OVER (
        PARTITION BY trace_id, span_id, service, kind
        ORDER BY (breached IS NOT NULL) DESC, coalesce(octet_length(rest), 0) DESC, rowid
    ) > 1
);

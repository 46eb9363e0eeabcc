-- Each span once. Of several copies the one with most attributes stays: it has the verdict. Client and server of one
-- call share an id in traces that came from Zipkin, so that service and kind tell spans apart too.
CREATE VIEW once AS
SELECT * FROM received
QUALIFY row_number() OVER (
    PARTITION BY trace_id, span_id, service, kind ORDER BY cardinality(attributes) DESC, start_unix_nano, end_unix_nano
) = 1;

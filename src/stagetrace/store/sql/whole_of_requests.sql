-- The spans of a selection, with all that `loaded` has: all of the traces that its requests belong to.
CREATE VIEW whole AS FROM loaded WHERE trace_id IN (SELECT trace_id FROM requests);

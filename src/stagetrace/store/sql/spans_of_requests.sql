-- `spans` of a selection: all of the traces that its requests belong to.
CREATE VIEW spans AS FROM every WHERE trace_id IN (SELECT trace_id FROM requests);

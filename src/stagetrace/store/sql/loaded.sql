-- What a `Loader` received, each span once, kept as a table: every question would sort it out anew.
CREATE TABLE loaded AS FROM once;
DROP VIEW once;
DROP TABLE received;

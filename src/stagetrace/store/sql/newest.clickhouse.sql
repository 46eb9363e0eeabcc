-- As for DuckDB.
SELECT if(count() = 0, NULL, max(start_unix_nano)) AS newest
FROM {requests}

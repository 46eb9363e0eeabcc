-- As for DuckDB.
SELECT count() AS stored
FROM {requests}
WHERE breached IS NOT NULL OR verdict IS NOT NULL

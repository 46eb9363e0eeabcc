-- When the newest request began.
SELECT max(start_unix_nano) AS newest
FROM {requests}
